//! Redis that is refused, reset, hung, restarted with its data and without: what every operation says, that the
//! pool recovers by itself, and that the journal settles every call exactly once.

use super::journal_replay::{Data, begin, end};
use super::redis_server::RedisServer;
use super::redis_store::{TTL, connect, options, sealer, stores};
use super::store_contract::{account_id, at, console, doc};
use super::store_usage::sums;
use claude_relay::store::journal::{JournalWriter, Settler};
use claude_relay::store::redis::{RedisOptions, RedisStore};
use claude_relay::store::{StoreError, Stores};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A journal, its writer, and a settler into a Redis.
struct Bench {
    data: Data,
    stores: Stores,
    writer: JournalWriter,
    settler: Settler,
    begun: u64,
}

impl Bench {
    async fn new(stores: Stores) -> Self {
        let data = Data::new();
        let (writer, _) = data.writer("b", 0, 1 << 20);
        let settler = data.settler(&stores, "b").with_piece_bytes(2_000);
        stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
        let mut bench = Self { data, stores, writer, settler, begun: 0 };
        bench.calls(20);
        bench.settler.settle_all().await.unwrap();
        assert_eq!(bench.settled().await, 20);
        bench
    }

    /// Calls that begin and end, out of step.
    fn calls(&mut self, count: u64) {
        let calls: Vec<String> = (0..count).map(|_| begin(&mut self.writer)).collect();
        calls.iter().for_each(|call| end(&mut self.writer, call));
        self.begun += count;
    }

    async fn settled(&self) -> u64 {
        let rows = sums(&self.stores).await;
        let requests = rows.iter().map(|r| r.requests).sum();
        assert_eq!(rows.iter().map(|r| r.usage.output_tokens).sum::<u64>(), 10 * requests, "tokens and calls disagree");
        requests
    }

    /// Every kind of operation fails, each within the timeouts; gives what one said and the longest wait.
    async fn everything_fails(&mut self) -> (String, Duration) {
        let (mut longest, mut said) = (Duration::ZERO, String::new());
        for nth in 0..7 {
            let began = Instant::now();
            let result: Result<(), StoreError> = match nth {
                0 => self.stores.accounts.list().await.map(drop),
                1 => self
                    .stores
                    .accounts
                    .patch(&account_id("a"), doc(serde_json::json!({"name": "n"})), at(1))
                    .await
                    .map(drop),
                2 => self.stores.facts.check().await,
                3 => self.stores.facts.fact("x").await.map(drop),
                4 => self.stores.usage.offsets().await.map(drop),
                5 => self.stores.usage.close_crashed("x").await.map(drop),
                _ => self.settler.settle_all().await.map(drop).map_err(|e| StoreError::Engine(e.to_string())),
            };
            said = result.expect_err("it works").to_string();
            longest = longest.max(began.elapsed());
        }
        (said, longest)
    }

    /// Tries as the Ledger does, until it works; gives how long that took.
    async fn settle_until_it_works(&mut self) -> Duration {
        let began = Instant::now();
        while let Err(error) = self.settler.settle_all().await {
            assert!(began.elapsed() < Duration::from_secs(10), "{error}");
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

/// The most that the timeouts of these tests allow for one operation, with some room for a busy machine.
const BOUND: Duration = Duration::from_millis(4_000);

#[actix_rt::test]
async fn refused_then_back_with_its_data() {
    let mut server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    server.stop();
    bench.calls(50);
    let (said, longest) = bench.everything_fails().await;
    println!("| refused | longest operation {longest:?}: {said} |");
    assert!(longest < BOUND);
    server.start_again();
    let took = bench.settle_until_it_works().await;
    println!("| restarted with data | settles again after {took:?} |");
    bench.stores.facts.check().await.unwrap();
    assert_eq!(bench.settled().await, bench.begun);
    assert_eq!(bench.stores.accounts.list().await.unwrap().len(), 1);
    bench.calls(5);
    bench.settler.settle_all().await.unwrap();
    assert_eq!(bench.settled().await, bench.begun);
}

#[actix_rt::test]
async fn hung_then_awake() {
    let server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    server.hang();
    bench.calls(50);
    let (said, longest) = bench.everything_fails().await;
    println!("| hung | longest operation {longest:?}: {said} |");
    assert!(longest < BOUND, "{longest:?}");
    server.go_on();
    let took = bench.settle_until_it_works().await;
    println!("| awake | settles again after {took:?} |");
    assert_eq!(bench.settled().await, bench.begun);
    bench.stores.facts.check().await.unwrap();
}

#[actix_rt::test]
async fn hung_for_longer_than_the_claim_lasts_is_no_loss() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let lost = store.claim().lost();
    let mut bench = Bench::new(store.into_stores()).await;
    server.hang();
    actix_rt::time::sleep(TTL + Duration::from_millis(500)).await;
    server.go_on();
    bench.calls(5);
    bench.settle_until_it_works().await;
    actix_rt::time::sleep(TTL / 2).await;
    assert_eq!((bench.settled().await, lost.borrow().clone()), (bench.begun, None));
    assert!(server.raw("PTTL claude-relay:{owner}lock").trim_start_matches(':').trim().parse::<i64>().unwrap() > 0);
}

#[actix_rt::test]
async fn emptied_and_the_journal_is_settled_again_from_its_start() {
    let mut server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    let open = begin(&mut bench.writer);
    bench.settler.settle_all().await.unwrap();
    server.stop_and_lose_data();
    bench.calls(30);
    server.start_again();
    let took = bench.settle_until_it_works().await;
    assert_eq!(bench.settled().await, bench.begun, "the file is still there, and all of it counts once");
    end(&mut bench.writer, &open);
    bench.settle_until_it_works().await;
    assert_eq!(bench.settled().await, bench.begun + 1);
    let said = bench.stores.facts.check().await.unwrap_err().to_string();
    println!("| restarted without data | settles again after {took:?}; check says: {said} |");
    assert!(said.contains("accounts and keys"), "{said}");
    assert!(bench.stores.accounts.list().await.unwrap().is_empty());
    let patched = bench.stores.accounts.patch(&account_id("a"), doc(console("a")), at(1)).await;
    assert!(matches!(patched, Err(StoreError::Missing(_))));
    // The claim and the schema are put there again, so that no second relay slips in.
    actix_rt::time::sleep(TTL / 2).await;
    assert_eq!(server.raw("HLEN claude-relay:{owner}schema"), ":2\r\n");
    for tag in ["keys", "usage-9"] {
        assert_eq!(server.raw(&format!("HEXISTS claude-relay:{{{tag}}}guard fence")), ":1\r\n");
    }
    assert!(RedisStore::connect(&options(&server.url()), sealer()).await.is_err());
    // The next start begins anew.
    drop(bench);
    stores(&server).await.facts.check().await.unwrap();
}

#[actix_rt::test]
async fn emptied_while_the_beginning_lies_in_a_removed_file() {
    let mut server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    (bench.writer, _) = bench.data.writer("b", 0, 300);
    let open = begin(&mut bench.writer);
    while bench.data.files().len() < 4 {
        bench.calls(1);
    }
    bench.settler.settle_all().await.unwrap();
    let before = bench.settled().await;
    server.stop_and_lose_data();
    server.start_again();
    end(&mut bench.writer, &open);
    bench.calls(3);
    bench.settle_until_it_works().await;
    // What was removed is gone with the data; what remains is settled, and the ending without a beginning is no row.
    let now = bench.settled().await;
    assert!(now >= 3 && now < before, "{now} after {before}");
    bench.settler.settle_all().await.unwrap();
    assert_eq!(bench.settled().await, now);
}

#[actix_rt::test]
async fn another_data_directory_takes_over_and_the_first_comes_back() {
    let server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    let open = begin(&mut bench.writer);
    bench.calls(7);
    bench.settler.settle_all().await.unwrap();
    // Written and not settled when that machine goes away.
    bench.calls(4);
    let Bench { data, begun, stores: first, writer, settler } = bench;
    drop((first, writer, settler));
    let elsewhere = Data::new();
    let stores = stores(&server).await;
    let report = elsewhere.settler(&stores, "c").settle_all().await.unwrap();
    assert_eq!((report.crashed, stores.usage.offsets().await.unwrap().len()), (1, 0));
    // Its file is settled again from its start, since nobody knows its offset any more.
    let report = data.settler(&stores, "d").settle_all().await.unwrap();
    assert_eq!(report.begun, begun + 1);
    let rows = sums(&stores).await;
    assert_eq!(
        (rows[0].requests, rows[0].endings["complete"], rows[0].endings["relay_crashed"]),
        (begun + 1, begun, 1)
    );
    assert!(!open.is_empty() && data.files().is_empty());
}

#[actix_rt::test]
async fn one_connection_is_enough_for_everything() {
    let mut server = RedisServer::start();
    let one = RedisOptions { pool_size: 1, ..options(&server.url()) };
    let bench = Bench::new(RedisStore::connect(&one, sealer()).await.unwrap().into_stores()).await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let accounts = bench.stores.accounts.clone();
            let patch = doc(serde_json::json!({"priority": n}));
            actix_rt::spawn(async move { accounts.patch(&account_id("a"), patch, at(1)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    server.stop_and_lose_data();
    server.start_again();
    actix_rt::time::sleep(TTL).await;
    assert_eq!(server.raw("HLEN claude-relay:{owner}schema"), ":2\r\n");
}

/// Goes between a store and its Redis.
struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
}

/// Hands everything on; resets instead of handing a request on; hands it on and resets instead of the answer.
const PASS: u8 = 0;
const RESET: u8 = 1;
const LOSE_ANSWER: u8 = 2;

impl Proxy {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, mode) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU8::new(PASS)));
        let modes = mode.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(redis) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let ends = [(&client, &redis, RESET), (&redis, &client, LOSE_ANSWER)];
                for (from, to, fault) in ends {
                    let (from, to, mode) = (from.try_clone().unwrap(), to.try_clone().unwrap(), modes.clone());
                    std::thread::spawn(move || hand_on(from, to, &mode, fault));
                }
            }
        });
        Self { port, mode }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, SeqCst);
    }
}

fn hand_on(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, fault: u8) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if mode.load(SeqCst) == fault {
            let client = if fault == RESET { &from } else { &to };
            // Closing with unread or unsent bytes and no linger is a reset.
            rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO)).unwrap();
            break;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[actix_rt::test]
async fn reset_at_any_time() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let store = RedisStore::connect(&options(&format!("redis://127.0.0.1:{}", proxy.port)), sealer()).await.unwrap();
    let mut bench = Bench::new(store.into_stores()).await;
    proxy.set(RESET);
    bench.calls(50);
    let (said, longest) = bench.everything_fails().await;
    println!("| reset | longest operation {longest:?}: {said} |");
    assert!(longest < BOUND);
    proxy.set(PASS);
    bench.settle_until_it_works().await;
    assert_eq!(bench.settled().await, bench.begun);

    // Requests arrive and their answers do not: done, and nobody knows it.
    let mut failed = 0;
    for round in 0..20 {
        bench.calls(10);
        let mode = proxy.mode.clone();
        let lose = actix_rt::spawn(async move {
            actix_rt::time::sleep(Duration::from_micros(round * 300)).await;
            mode.store(LOSE_ANSWER, SeqCst);
            actix_rt::time::sleep(Duration::from_millis(5)).await;
        });
        failed += u32::from(bench.settler.settle_all().await.is_err());
        lose.await.unwrap();
        proxy.set(PASS);
        bench.settle_until_it_works().await;
        assert_eq!(bench.settled().await, bench.begun, "round {round}");
    }
    println!("| answer lost | {failed} of 20 settlements failed and were tried again |");
    assert!(failed > 0);
}

#[actix_rt::test]
async fn a_full_redis_refuses_writes_and_settles_when_there_is_room() {
    let server = RedisServer::start();
    let mut bench = Bench::new(stores(&server).await).await;
    assert_eq!(server.raw("CONFIG SET maxmemory 1"), "+OK\r\n");
    bench.calls(10);
    let refused = bench.settler.settle_all().await.unwrap_err().to_string();
    let check = bench.stores.facts.check().await.unwrap_err().to_string();
    println!("| full | {refused} |");
    assert!(refused.contains("OOM") && check.contains("OOM"), "{refused} {check}");
    assert_eq!((bench.settled().await, bench.stores.accounts.list().await.unwrap().len()), (20, 1), "reading goes on");
    assert_eq!(server.raw("CONFIG SET maxmemory 0"), "+OK\r\n");
    bench.settle_until_it_works().await;
    assert_eq!(bench.settled().await, bench.begun);
}

/// Runs the ignored test `name` of this module in a process of its own.
fn child(name: &str, server: &RedisServer, dir: &Path, boot: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("redis_faults::{name}"), "--ignored", "--nocapture"]);
    command.env("REDIS_TEST_URL", server.url()).env("JOURNAL_TEST_DIR", dir).env("REDIS_TEST_BOOT", boot);
    command.stdout(Stdio::piped());
    command
}

#[actix_rt::test]
async fn kill_9_of_a_settling_process_loses_and_doubles_nothing() {
    let server = RedisServer::start();
    let data = Data::new();
    let mut told: Vec<String> = Vec::new();
    for round in 0..6_usize {
        let mut process = child("child_that_settles", &server, &data.journal(), &format!("k{round}")).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        told.extend(lines.filter(|l| l.starts_with("k") && l.contains("-0-")).take(150 + 70 * round));
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // It was killed, and its claim is still there: it is known to be dead, since it ran here.
    let began = Instant::now();
    let stores = stores(&server).await;
    assert!(began.elapsed() < TTL / 2, "waited for the claim of a dead process");
    data.settler(&stores, "last").settle_all().await.unwrap();
    assert!(data.files().is_empty() && stores.usage.offsets().await.unwrap().is_empty());
    let rows = sums(&stores).await;
    let requests: u64 = rows.iter().map(|r| r.requests).sum();
    let complete: u64 = rows.iter().filter_map(|r| r.endings.get("complete")).sum();
    let crashed: u64 = rows.iter().filter_map(|r| r.endings.get("relay_crashed")).sum();
    assert_eq!(requests, complete + crashed);
    assert_eq!(rows.iter().map(|r| r.usage.output_tokens).sum::<u64>(), complete * 10);
    // The list of calls has each one once: those that were told of, and a few that were begun just then.
    let listed = server.raw("LRANGE claude-relay:{usage-0}calls 0 -1");
    let mut calls: Vec<&str> =
        listed.lines().filter_map(|l| l.split_once(r#""call":""#)?.1.split('"').next()).collect();
    assert_eq!(calls.len() as u64, requests);
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(calls.len() as u64, requests, "a call is there twice");
    told.retain(|call| calls.binary_search(&call.as_str()).is_err());
    assert!(told.is_empty(), "lost: {told:?}");
    println!("killed 6 times: {requests} calls, {crashed} of them relay_crashed");
}

#[actix_rt::test]
#[ignore = "the process that kill_9_of_a_settling_process_loses_and_doubles_nothing kills"]
async fn child_that_settles() {
    let (Ok(url), Ok(dir)) = (std::env::var("REDIS_TEST_URL"), std::env::var("JOURNAL_TEST_DIR")) else { return };
    let boot = std::env::var("REDIS_TEST_BOOT").unwrap();
    let stores = RedisStore::connect(&options(&url), sealer()).await.unwrap().into_stores();
    let mut settler = Settler::new(Path::new(&dir), stores.usage.clone(), &boot).unwrap().with_piece_bytes(500);
    settler.recover().await.unwrap();
    let mut writer = JournalWriter::create_rotating(Path::new(&dir), &boot, 0, Arc::default(), 3_000).unwrap();
    println!();
    for n in 0_u64.. {
        let call = begin(&mut writer);
        println!("{call}");
        if n % 5 != 0 {
            end(&mut writer, &call);
        }
        if n % 7 == 0 {
            settler.settle_all().await.unwrap();
        }
    }
}
