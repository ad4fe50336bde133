//! The first start: the admin token, the demo account and its key, and what people are told of them. Also the
//! check that a later start brings the same sealing key.

use super::files::DataDir;
use super::{StartError, random};
use crate::actors::roster::{Amend, Enlist, Retire};
use crate::domain::document::Document;
use crate::domain::{AccountId, KeyHash, Secret};
use crate::http::admin::accounts::DEMO;
use crate::http::admin::token::{self, AdminToken};
use crate::http::{self, Shared};
use crate::store::seal::{self, Sealer};
use crate::store::{StoreError, Stores};
use actix_web::dev::ServerHandle;
use std::io::{self, Write};
use std::net::SocketAddr;

/// A relay that came up with another sealing key would leave every account out; better that it does not come up.
pub(super) async fn same_sealing_key(stores: &Stores, sealer: &Sealer) -> Result<(), StartError> {
    match stores.facts.fact(seal::FACT).await? {
        Some(id) if id != sealer.key_id() => {
            Err(StartError::OtherSealingKey { stored: id, given: sealer.key_id().into() })
        }
        Some(_) => Ok(()),
        None => Ok(stores.facts.set_fact(seal::FACT, sealer.key_id()).await?),
    }
}

/// The hash to check against, and the token itself if it was made just now.
pub(super) async fn admin_token(stores: &Stores, dir: &DataDir) -> Result<(AdminToken, Option<Secret>), StartError> {
    let stored = stores.facts.fact(token::FACT).await?;
    if let Some(hash) = stored.as_deref().and_then(KeyHash::from_hex) {
        return Ok((AdminToken(hash), None));
    }
    let fresh = token::generate(random()?);
    dir.write_private("admin-token", fresh.expose())?;
    let hash = KeyHash::of(fresh.expose());
    stores.facts.set_fact(token::FACT, &hash.to_hex()).await?;
    Ok((AdminToken(hash), Some(fresh)))
}

/// With an empty store: a demo account and one key. Where there is a demo account: its upstream, on a port that
/// changes with each start.
pub(super) async fn demo(shared: &Shared) -> Result<(Option<ServerHandle>, Option<Secret>), StartError> {
    let accounts = shared.stores.accounts.list().await?;
    let is_demo = |doc: &Document| doc.get("demo").and_then(serde_json::Value::as_bool) == Some(true);
    let existing = accounts.iter().any(is_demo);
    if existing && accounts.len() > 1 {
        // A real account came, and its relay went before it could retire the demo.
        let id = AccountId::parse(DEMO).map_err(StoreError::from)?;
        let retired = shared.actors.roster.addr().send(Retire { id }).await;
        retired.map_err(|_| StoreError::Engine("the roster did not answer".to_owned()))??;
        return Ok((None, None));
    }
    let empty = accounts.is_empty() && shared.stores.keys.list().await?.is_empty();
    if !(existing || empty && shared.settings.demo) {
        return Ok((None, None));
    }
    let token = hex::encode(random::<16>()?);
    let (addr, handle) = http::demo::start(&token).map_err(StartError::file("the demo upstream"))?;
    let mut record = Document::default();
    record.set("custom_api_endpoint", format!("http://{addr}"));
    record.set("session_token", token);
    let roster = shared.actors.roster.addr();
    let lost = |_| StartError::Store(StoreError::Engine("the roster did not answer".to_owned()));
    if existing {
        let id = AccountId::parse(DEMO).map_err(StoreError::from)?;
        roster.send(Amend { id, patch: record }).await.map_err(lost)??;
        return Ok((Some(handle), None));
    }
    record.set("id", DEMO);
    record.set("name", "Demo (built in; retires when a real account is added)");
    record.set("platform", "claudeconsole");
    record.set("demo", true);
    roster.send(Enlist { record }).await.map_err(lost)??;
    let mut key = Document::default();
    key.set("name", "first key");
    let (_, plain) = http::admin::keys::issue(shared, key).await.map_err(|e| StoreError::Engine(e.to_string()))?;
    Ok((Some(handle), Some(Secret::new(plain.expose()))))
}

/// What the greeting's curl sends.
const DEMO_REQUEST: &str =
    r#"{"model":"demo","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"Hello"}]}"#;

/// What is told once, at first start.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    pub admin_token: Option<Secret>,
    pub demo_key: Option<Secret>,
}

impl Greeting {
    /// Tells it. A reader that has gone (`| head`) is no reason not to serve.
    pub fn tell(&self, relay: SocketAddr, admin: SocketAddr, dir: &DataDir) {
        let _ = self.write(&mut io::stdout().lock(), relay, admin, dir);
    }

    fn write(&self, out: &mut impl Write, relay: SocketAddr, admin: SocketAddr, dir: &DataDir) -> io::Result<()> {
        writeln!(out, "claude-relay {} listens on http://{relay}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "admin API on http://{admin}/admin, data in {}", dir.root().display())?;
        if let Some(token) = &self.admin_token {
            writeln!(out, "\nThe admin token, shown this once (the local CLI reads it from the data directory):")?;
            writeln!(out, "  {}", token.expose())?;
        }
        if let Some(key) = &self.demo_key {
            writeln!(out, "\nThe store is empty, so there is a demo account and one key. Try it:\n")?;
            writeln!(out, "  curl -N http://{relay}/v1/messages \\\n    -H 'x-api-key: {}' \\", key.expose())?;
            writeln!(out, "    -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01' \\")?;
            writeln!(out, "    -d '{DEMO_REQUEST}'\n")?;
            writeln!(
                out,
                "Add a real account with `claude-relay account add --file FILE`; the demo account then retires."
            )?;
            writeln!(
                out,
                "The key will open real accounts too: revoke it when you have made others (`claude-relay key list`)."
            )?;
        }
        out.flush()
    }
}
