//! `TestRelay`: the real `build` on free ports with a store of its own. Its drop asserts that nothing is left
//! held: no permit, no pass, no ticket.

use crate::fake_upstream::FakeUpstream;
use crate::raw_client::{Answer, Request, Streaming, open, send};
use claude_relay::actors::{Actors, Outstanding};
use claude_relay::settings::Settings;
use claude_relay::startup::Application;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Settings under which a call that finds every account busy is refused at once.
pub fn without_waiting(settings: &mut Settings) {
    settings.queue.timeout = Duration::ZERO;
}

/// A relay under test.
pub struct TestRelay {
    application: Option<Application>,
    actors: Actors,
    relay: SocketAddr,
    admin: SocketAddr,
    token: String,
    /// Its data directory.
    pub dir: TempDir,
}

impl TestRelay {
    /// A relay without accounts or keys.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(edit: impl FnOnce(&mut Settings)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), edit).await
    }

    /// The same over a data directory that is there already.
    pub async fn start_in(dir: TempDir, edit: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::for_tests(dir.path());
        edit(&mut settings);
        let application = Application::build(settings).await.unwrap();
        let token = std::fs::read_to_string(dir.path().join("admin-token")).unwrap().trim().to_owned();
        let (relay, admin) = (application.relay_addr(), application.admin_addr());
        Self { actors: application.actors().clone(), application: Some(application), relay, admin, token, dir }
    }

    /// Where clients call.
    pub fn addr(&self) -> SocketAddr {
        self.relay
    }

    /// Where operators call.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// One request to the relay's listener.
    pub async fn send(&self, request: Request) -> Answer {
        send(self.relay, request).await
    }

    /// The same, read as it comes.
    pub async fn open(&self, request: Request) -> Streaming {
        open(self.relay, request).await
    }

    /// One request on a task of its own, for a call that is to wait.
    pub fn open_later(&self, request: Request) -> actix_rt::task::JoinHandle<Answer> {
        actix_rt::spawn(send(self.relay, request))
    }

    /// One request to the Admin API, with its token.
    pub async fn admin(&self, request: Request) -> Answer {
        send(self.admin, request.header("authorization", &format!("Bearer {}", self.token))).await
    }

    /// Adds an account; a console account with a limit of 5 unless `fields` says otherwise.
    pub async fn add_account(&self, id: &str, upstream: &FakeUpstream, fields: Value) -> Value {
        let mut record = json!({
            "id": id,
            "name": format!("account {id}"),
            "platform": "claudeconsole",
            "custom_api_endpoint": format!("{}/api", upstream.url()),
            "session_token": format!("token-of-{id}"),
        });
        for (name, value) in fields.as_object().unwrap() {
            record[name] = value.clone();
        }
        let answer = self.admin(Request::post("/admin/accounts").json(record)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// Adds a key and returns it in the clear.
    pub async fn add_key(&self, fields: Value) -> String {
        self.add_key_record(fields).await["key"].as_str().unwrap().to_owned()
    }

    /// Adds a key and returns the whole answer.
    pub async fn add_key_record(&self, mut fields: Value) -> Value {
        fields["name"] = json!("test");
        let answer = self.admin(Request::post("/admin/keys").json(fields)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// Usage rows, settled as of now.
    pub async fn usage(&self) -> Vec<Value> {
        let answer = self.admin(Request::get("/admin/usage")).await;
        answer.json()["rows"].as_array().unwrap().clone()
    }

    /// The status of one account.
    pub async fn account_status(&self, id: &str) -> Value {
        self.admin(Request::get(&format!("/admin/accounts/{id}/status"))).await.json()
    }

    /// The codes of an account's reasons.
    pub async fn reasons(&self, id: &str) -> Vec<String> {
        let status = self.account_status(id).await;
        let code = |r: &Value| r["code"].as_str().unwrap().to_owned();
        status["reasons"].as_array().unwrap().iter().map(code).collect()
    }

    /// Calls by how they ended, over all rows.
    pub async fn endings(&self) -> Vec<(String, u64)> {
        let mut all = std::collections::BTreeMap::new();
        for row in self.usage().await {
            for (ending, n) in row["endings"].as_object().unwrap() {
                *all.entry(ending.clone()).or_insert(0) += n.as_u64().unwrap();
            }
        }
        all.into_iter().filter(|(_, n)| *n > 0).collect()
    }

    /// Waits until nothing is held.
    pub async fn idle(&self) {
        eventually("nothing is held", || self.outstanding() == NOTHING).await;
    }

    /// What is held now.
    pub fn outstanding(&self) -> Outstanding {
        self.actors.outstanding()
    }

    /// Its actors.
    pub fn actors(&self) -> &Actors {
        &self.actors
    }

    /// A clean end, for tests that look at what it leaves behind.
    pub async fn stop(mut self) -> TempDir {
        self.application.take().unwrap().stop().await;
        assert_eq!(self.outstanding(), NOTHING);
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}

/// All that should be left in the end.
pub const NOTHING: Outstanding = Outstanding { permits: 0, passes: 0, tickets: 0 };

/// A Messages request with a relay key.
pub fn message(key: &str) -> Request {
    Request::post("/v1/messages").header("x-api-key", key).header("anthropic-version", "2023-06-01").json(body(false))
}

/// The same, streaming.
pub fn stream(key: &str) -> Request {
    Request::post("/v1/messages").header("x-api-key", key).header("anthropic-version", "2023-06-01").json(body(true))
}

/// A small request body.
pub fn body(stream: bool) -> Value {
    json!({"model": "claude-test", "max_tokens": 16, "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
}

/// Waits for something that another thread is about to do; fails after ten seconds.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(10), "waited ten seconds until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        if self.application.is_none() || std::thread::panicking() {
            return;
        }
        // The workers run on threads of their own: what ends a moment after the test's last line still counts.
        let started = Instant::now();
        while self.outstanding() != NOTHING && started.elapsed() < Duration::from_secs(2) {
            std::thread::yield_now();
        }
        assert_eq!(self.outstanding(), NOTHING, "held after the end of the test");
        self.actors.stop();
    }
}
