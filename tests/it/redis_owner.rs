//! One relay owns a Redis: a second is refused, a dead one is replaced, and one that slept cannot write any more.

use super::redis_server::RedisServer;
use super::redis_store::{TTL, connect, options, sealer, stores};
use super::store_contract::{account_id, at, console, doc};
use super::store_usage::{begun, piece};
use claude_relay::store::redis::{LockError, RedisError, RedisOptions, RedisStore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn a_claim(ttl_ms: u64) -> String {
    let holder = r#"{\"host\":\"elsewhere\",\"pid\":7,\"since\":\"2027-01-15T08:00:00Z\"}"#;
    format!("SET claude-relay:{{owner}}lock \"17 {holder}\" PX {ttl_ms}")
}

#[actix_rt::test]
async fn a_second_relay_is_refused_while_the_first_lives_and_let_in_when_it_ended() {
    let server = RedisServer::start();
    let first = connect(&server).await;
    let lost = first.claim().lost();
    let began = Instant::now();
    let refused = RedisStore::connect(&options(&server.url()), sealer()).await.err().unwrap();
    println!("refused after {:?}: {refused}", began.elapsed());
    assert!(matches!(&refused, RedisError::Lock(LockError::Owned { pid, .. }) if *pid == std::process::id()));
    assert!(refused.to_string().contains("another key prefix"), "{refused}");
    assert!(began.elapsed() < TTL * 2);
    let other = RedisOptions { key_prefix: "other:".to_owned(), ..options(&server.url()) };
    drop(RedisStore::connect(&other, sealer()).await.unwrap());
    // It still owns it, long after the TTL.
    let (claim, stores) = (first.claim(), first.into_stores());
    stores.facts.set_fact("x", "1").await.unwrap();
    assert_eq!(lost.borrow().clone(), None);
    // One that is about to end gives its claim back, and does not take it up again though its store lives on.
    claim.release().await;
    actix_rt::time::sleep(TTL / 2).await;
    assert_eq!(server.raw("EXISTS claude-relay:{owner}lock"), ":0\r\n");
    let began = Instant::now();
    drop(connect(&server).await);
    connect(&server).await;
    assert!(began.elapsed() < TTL / 3, "{:?}", began.elapsed());
}

#[actix_rt::test]
async fn the_claim_of_a_relay_that_died_elsewhere_is_waited_for() {
    let server = RedisServer::start();
    server.raw(&a_claim(900));
    let began = Instant::now();
    let store = connect(&server).await;
    assert!((600..1_500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    drop(store);
    // One that lives renews it, and is seen to.
    server.raw(&a_claim(1_000));
    let waiting = actix_rt::spawn({
        let options = options(&server.url());
        async move { RedisStore::connect(&options, sealer()).await.map(drop) }
    });
    actix_rt::time::sleep(Duration::from_millis(300)).await;
    server.raw(&a_claim(2_000));
    let refused = waiting.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("process 7 on elsewhere, since 2027-01-15T08:00:00Z"), "{refused}");
}

#[actix_rt::test]
async fn tokens_rise_even_where_the_data_were_lost() {
    let mut server = RedisServer::start();
    let fence = |server: &RedisServer, tag: &str| -> u64 {
        let answer = server.raw(&format!("HGET claude-relay:{{{tag}}}guard fence"));
        answer.lines().nth(1).unwrap().parse().unwrap()
    };
    drop(connect(&server).await);
    let first = fence(&server, "owner");
    drop(connect(&server).await);
    let second = fence(&server, "owner");
    assert!(second > first);
    assert!(["accounts", "keys", "usage-0", "usage-15"].iter().all(|tag| fence(&server, tag) == second));
    server.stop_and_lose_data();
    server.start_again();
    drop(connect(&server).await);
    assert!(fence(&server, "owner") > second);
}

/// A process with a store, told by lines what to do.
struct Other(Child);

impl Other {
    fn start(server: &RedisServer) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "redis_owner::child_that_owns", "--ignored", "--nocapture"]);
        command.env("REDIS_TEST_URL", server.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut other = Self(command.spawn().unwrap());
        assert_eq!(other.hear(), "told: owns");
        other
    }

    fn tell(&mut self) {
        writeln!(self.0.stdin.as_mut().unwrap(), "write").unwrap();
    }

    fn hear(&mut self) -> String {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
        lines.map(|l| l.trim().to_owned()).find(|line| line.starts_with("told: ")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[actix_rt::test]
async fn a_relay_that_slept_through_its_claim_cannot_write_any_more() {
    let server = RedisServer::start();
    let mut other = Other::start(&server);
    other.tell();
    assert_eq!(other.hear(), "told: true true true, lost false");
    other.signal(Signal::STOP);
    // It is not dead, and may wake at any moment: its time must run out.
    let began = Instant::now();
    let stores = stores(&server).await;
    assert!(began.elapsed() > TTL / 3, "{:?}", began.elapsed());
    println!("took over from a stopped process after {:?}", began.elapsed());
    stores.accounts.patch(&account_id("a"), doc(json!({"name": "ours"})), at(9)).await.unwrap();
    stores.facts.set_fact("whose", "ours").await.unwrap();
    // Both at once: its own writes, and the renewal that tells it.
    other.tell();
    other.signal(Signal::CONT);
    assert_eq!(other.hear(), "told: false false false, lost true");
    let account = stores.accounts.load(&account_id("a")).await.unwrap();
    assert_eq!(account.get("name"), Some(&json!("ours")));
    assert_eq!(stores.facts.fact("whose").await.unwrap().as_deref(), Some("ours"));
    assert_eq!(stores.usage.offsets().await.unwrap(), [("b-0-0.jnl".to_owned(), 1)]);
    stores.facts.check().await.unwrap();
}

#[actix_rt::test]
async fn an_idle_relay_that_slept_hears_of_its_loss() {
    let server = RedisServer::start();
    let mut other = Other::start(&server);
    other.signal(Signal::STOP);
    let _stores = stores(&server).await;
    other.signal(Signal::CONT);
    assert_eq!(other.hear(), "told: lost by renewal");
}

#[actix_rt::test]
async fn the_claim_of_a_process_that_was_killed_here_is_taken_at_once() {
    let server = RedisServer::start();
    let mut other = Other::start(&server);
    other.0.kill().unwrap();
    other.0.wait().unwrap();
    let began = Instant::now();
    connect(&server).await;
    assert!(began.elapsed() < TTL / 3, "{:?}", began.elapsed());
}

#[actix_rt::test]
#[ignore = "the process that the tests of this file stop and kill"]
async fn child_that_owns() {
    let Ok(url) = std::env::var("REDIS_TEST_URL") else { return };
    let store = RedisStore::connect(&options(&url), sealer()).await.unwrap();
    let mut lost = store.claim().lost();
    let mut told = store.claim().lost();
    let stores = store.into_stores();
    stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
    println!("\ntold: owns");
    let (lines, mut line) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|l| lines.send(l)));
    for n in 0..2 {
        tokio::select! {
            _ = line.recv() => {}
            // Whoever told it to write as well wants to see that: its line may come a moment later.
            _ = lost.changed() => if tokio::time::timeout(TTL, line.recv()).await.is_err() {
                return println!("\ntold: lost by renewal");
            },
        }
        let patched = stores.accounts.patch(&account_id("a"), doc(json!({"name": "theirs"})), at(1)).await;
        let fact = stores.facts.set_fact("whose", "theirs").await;
        let open = vec![begun(&format!("b-0-{n}"), "k", "m", at(0))];
        let settled = stores.usage.settle(piece("b-0-0.jnl", n, n + 1, open, vec![])).await;
        let lost = told.has_changed().unwrap() && told.borrow_and_update().is_some();
        println!("\ntold: {} {} {}, lost {lost}", patched.is_ok(), fact.is_ok(), settled.is_ok());
    }
}
