//! The ways to reach Redis: unix socket, database number, ACL user, TLS, Sentinel, Cluster.

use super::redis_server::RedisServer;
use super::redis_store::{TTL, options, sealer, stores_at as connect};
use super::store_contract::{account_id, at, console, doc};
use super::store_usage::{begun, ended, piece, sums};
use claude_relay::domain::Ending;
use claude_relay::store::redis::{MIGRATIONS, RedisOptions, RedisStore, dry_run, status};
use claude_relay::store::{Event, Stores};
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A little of every face.
async fn works(stores: &Stores) {
    stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
    stores.accounts.patch(&account_id("a"), doc(json!({"priority": 1, "headers": null})), at(1)).await.unwrap();
    assert_eq!(stores.accounts.list().await.unwrap().len(), 1);
    for worker in 0..20 {
        let call = |n: u32| format!("b-{worker}-{n}");
        let open = vec![begun(&call(1), "k", "m", at(0)), begun(&call(2), "k", "m", at(0))];
        let file = format!("b-{worker}-0.jnl");
        stores.usage.settle(piece(&file, 0, 9, open, vec![ended(&call(1), Ending::Complete, 1)])).await.unwrap();
    }
    assert_eq!(stores.usage.close_crashed("b").await.unwrap(), 20);
    assert_eq!(sums(stores).await[0].requests, 40);
    assert_eq!(stores.usage.offsets().await.unwrap().len(), 20);
    stores.usage.forget("b-3-0.jnl").await.unwrap();
    assert_eq!(stores.transfer.counts().await.unwrap().offsets, 19);
    stores.facts.set_fact("x", "y").await.unwrap();
    assert_eq!(stores.facts.fact("x").await.unwrap().as_deref(), Some("y"));
    stores.facts.check().await.unwrap();
    let event = Event { at: at(3), schedulable: true, reasons: Vec::new(), cause: "a test".to_owned() };
    stores.events.add_event(&account_id("a"), event.clone()).await.unwrap();
    assert_eq!(stores.events.events(&account_id("a")).await.unwrap(), [event]);
    stores.accounts.remove(&account_id("a")).await.unwrap();
}

#[actix_rt::test]
async fn a_unix_socket_and_a_database() {
    let server = RedisServer::start();
    works(&connect(&format!("redis+unix://{}?db=3", server.socket().display())).await).await;
    assert!(server.raw("INFO keyspace").contains("db3:") && !server.raw("INFO keyspace").contains("db0:"));
    works(&connect(&format!("{}/5", server.url())).await).await;
    assert!(server.raw("INFO keyspace").contains("db5:"));
}

/// The commands of the ACL user in `file`, as one line of `+NAME`s.
fn acl_of(file: &str) -> String {
    let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let line = text.lines().find(|l| l.starts_with("user relay on ")).unwrap();
    line.split(' ').filter(|word| word.starts_with('+')).collect::<Vec<_>>().join(" ")
}

/// Granted for comfort: INFO for the warnings at start, SELECT for another database than 0.
const OPTIONAL: [&str; 2] = ["info", "select"];

#[actix_rt::test]
async fn an_acl_user_with_the_least_it_needs() {
    let server = RedisServer::start();
    let least = acl_of("README.md");
    assert_eq!(least, acl_of("scripts/redis"));
    let user = format!("ACL SETUSER relay on >p@ss resetchannels ~claude-relay:* {least}");
    assert_eq!(server.raw(&user), "+OK\r\n");
    let url = server.url().replace("redis://", "redis://relay:p%40ss@");
    let stores = connect(&url).await;
    works(&stores).await;
    stores.keys.insert(doc(json!({"id": "k", "name": "n", "hash": "ab".repeat(32)})), at(0)).await.unwrap();
    assert!(RedisStore::connect(&options(&url), sealer()).await.is_err(), "it has an owner");
    drop(stores);
    assert_eq!(status(&options(&url)).await.unwrap().len(), MIGRATIONS.len());
    server.raw("HDEL claude-relay:{owner}schema 2");
    dry_run(&options(&url)).await.unwrap();
    connect(&url).await;
    // And each of them is needed: there is nothing in the list that nobody called.
    let calls = server.commands();
    let granted = least.split('+').map(str::trim).filter(|name| !name.is_empty());
    let unused: Vec<&str> = granted.filter(|name| !calls.contains_key(*name) && !OPTIONAL.contains(name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
    // Outside its prefix it may do nothing.
    let other = RedisOptions { key_prefix: "other:".to_owned(), ..options(&url) };
    let refused = RedisStore::connect(&other, sealer()).await.err().unwrap().to_string();
    assert!(refused.contains("no permissions"), "{refused}");
}

fn openssl(dir: &TempDir, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(dir.path()).output();
    let output = output.expect("openssl is not installed; run: apt-get install openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[actix_rt::test]
async fn tls_with_a_certificate_that_is_trusted_and_one_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    openssl(
        &dir,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=relay test CA",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ],
    );
    openssl(
        &dir,
        &[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "key.pem",
            "-out",
            "req.pem",
        ],
    );
    std::fs::write(dir.path().join("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(
        &dir,
        &[
            "x509",
            "-req",
            "-in",
            "req.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
            "-out",
            "cert.pem",
        ],
    );
    let file = |name: &str| dir.path().join(name).display().to_string();
    let tls_port = super::redis_server::free_port().to_string();
    let arguments = [
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &file("cert.pem"),
        "--tls-key-file",
        &file("key.pem"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
    ];
    let _server = RedisServer::start_with(&arguments);
    let url = format!("rediss://localhost:{tls_port}");
    let refused = RedisStore::connect(&options(&url), sealer()).await.err().unwrap().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    // The system's trusted certificates are read from the environment's file, so this is a process of its own.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "redis_kinds::child_that_trusts", "--ignored", "--nocapture"]);
    let output = child.env("SSL_CERT_FILE", file("ca.pem")).env("REDIS_TEST_URL", url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[actix_rt::test]
#[ignore = "the process that tls_with_a_certificate_that_is_trusted_and_one_that_is_not starts"]
async fn child_that_trusts() {
    let Ok(url) = std::env::var("REDIS_TEST_URL") else { return };
    works(&connect(&url).await).await;
}

/// A sentinel, which ends with its value.
struct Sentinel {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Sentinel {
    fn watching(master: &RedisServer) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), super::redis_server::free_port());
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 2000\nsentinel failover-timeout main 4000\n",
            master.port()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&config).arg("--sentinel").current_dir(dir.path()).stdout(Stdio::null());
        Self { process: command.spawn().unwrap(), port, _dir: dir }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn soon(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "not yet: {what}");
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
}

#[actix_rt::test]
async fn a_master_is_found_by_its_sentinel_and_the_next_one_after_it_died() {
    let mut master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let role = |server: &RedisServer| server.raw("INFO replication");
    soon("the replica follows", || role(&replica).contains("master_link_status:up")).await;
    let sentinel = Sentinel::watching(&master);
    let asked = || {
        let mut ask = Command::new("redis-cli");
        ask.args(["-p", &sentinel.port.to_string(), "SENTINEL", "REPLICAS", "main"]);
        String::from_utf8_lossy(&ask.output().unwrap().stdout).into_owned()
    };
    soon("the sentinel knows the replica", || asked().contains("slave-priority")).await;
    let url = format!("redis+sentinel://127.0.0.1:{}/main/2", sentinel.port);
    let store = RedisStore::connect(&options(&url), sealer()).await.unwrap();
    let lost = store.claim().lost();
    let stores = store.into_stores();
    works(&stores).await;
    let offset =
        |server: &RedisServer| role(server).lines().find(|l| l.starts_with("master_repl_offset")).map(str::to_owned);
    soon("the replica has caught up", || offset(&master) == offset(&replica)).await;
    master.stop();
    let began = Instant::now();
    while let Err(error) = stores.facts.set_fact("after", "failover").await {
        assert!(began.elapsed() < Duration::from_secs(40), "{error}");
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
    println!("writes at the new master {:?} after the old one died", began.elapsed());
    assert!(role(&replica).contains("role:master"));
    stores.facts.check().await.unwrap();
    actix_rt::time::sleep(TTL).await;
    assert_eq!((lost.borrow().clone(), sums(&stores).await[0].requests), (None, 40));
}

/// Three nodes that share the slots.
pub struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    pub fn start() -> Self {
        let node = |_| {
            let bus = super::redis_server::free_port().to_string();
            RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
        };
        let nodes: Vec<RedisServer> = (0..3).map(node).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())));
        let output = create.arg("--cluster-yes").output().expect("redis-cli is not installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let began = Instant::now();
        while !nodes.iter().all(|n| n.raw("CLUSTER INFO").contains("cluster_state:ok")) {
            assert!(began.elapsed() < Duration::from_secs(20), "the cluster does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { nodes }
    }

    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port(), self.nodes[1].port())
    }
}

#[actix_rt::test]
async fn a_cluster_with_migrations_claims_and_a_node_that_hangs() {
    let cluster = Cluster::start();
    let stores = connect(&cluster.url()).await;
    works(&stores).await;
    let keys: Vec<usize> = cluster.nodes.iter().map(|n| n.raw("KEYS *").matches("claude-relay:").count()).collect();
    assert!(keys.iter().all(|count| *count > 0), "the keys lie on some nodes only: {keys:?}");
    for n in 0..30 {
        let key = json!({"id": format!("k{n}"), "name": "n", "hash": format!("{n:064}")});
        stores.keys.insert(doc(key), at(0)).await.unwrap();
    }
    assert!(RedisStore::connect(&options(&cluster.url()), sealer()).await.is_err(), "it has an owner");
    drop(stores);
    for node in &cluster.nodes {
        node.raw("DEL claude-relay:{keys}hashes");
        node.raw("HDEL claude-relay:{owner}schema 2");
    }
    assert_eq!(dry_run(&options(&cluster.url())).await.unwrap()[0].changes, 30);
    let stores = connect(&cluster.url()).await;
    assert_eq!(status(&options(&cluster.url())).await.unwrap()[1].applied.as_ref().unwrap().changed, 30);
    assert_eq!(stores.keys.list().await.unwrap().len(), 30);

    cluster.nodes.iter().for_each(RedisServer::hang);
    let began = Instant::now();
    assert!(stores.facts.check().await.is_err() && stores.accounts.list().await.is_err());
    println!("two operations on a hung cluster failed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5));
    cluster.nodes.iter().for_each(RedisServer::go_on);
    let began = Instant::now();
    while let Err(error) = stores.facts.check().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
    println!("a cluster that woke works again after {:?}", began.elapsed());
}
