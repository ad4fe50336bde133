//! Small facts in Redis, the name of the data, and whether both are as they should be.

use super::RedisStore;
use super::commit::{Commit, Sent};
use super::keys::{KeyNames, Tag};
use super::link::Wire;
use crate::store::{Facts, StoreError};
use async_trait::async_trait;
use deadpool_redis::redis::cmd;

/// The name of the data that are there, which is given once.
pub(super) async fn name_data(wire: &mut Wire, names: &KeyNames, token: u64) -> Result<String, StoreError> {
    let mut commit = Commit::new(names, Tag::Owner);
    commit.expect(&names.birth(), "id", None);
    commit.run("HSET", &names.birth(), 2, ["id".to_owned(), token.to_string()]);
    commit.send(wire, token).await?;
    let found: Option<String> = wire.ask(cmd("HGET").arg(names.birth()).arg("id")).await?;
    found.ok_or_else(|| StoreError::Engine("Redis does not keep what is written".to_owned()))
}

/// Warns of settings with which Redis would lose what it was given. A login that may not look is not told.
pub(super) async fn advise(wire: &mut Wire, names: &KeyNames) {
    let Ok(info) = wire.ask_at::<String>(&names.lock(), cmd("INFO")).await else { return };
    let says = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("");
    if says("maxmemory_policy") != "noeviction" && says("maxmemory") != "0" {
        let policy = says("maxmemory_policy");
        tracing::warn!(policy, "a full Redis would drop accounts, keys and usage; set maxmemory-policy noeviction");
    }
    if says("aof_enabled") == "0" {
        tracing::warn!("a Redis that crashes would lose what came after its last dump; set appendonly yes");
    }
}

#[async_trait]
impl Facts for RedisStore {
    async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.run(|shared| async move {
            shared.link.wire().await?.ask(cmd("HGET").arg(shared.names.facts()).arg(name)).await
        })
        .await
    }

    async fn set_fact(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let fact = [name.to_owned(), value.to_owned()];
        self.run(|shared| async move {
            let mut commit = Commit::new(&shared.names, Tag::Owner);
            commit.run("HSET", &shared.names.facts(), 2, fact);
            shared.commit(&mut shared.link.wire().await?, &commit).await.map(drop)
        })
        .await
    }

    /// A write, so that a Redis that is full, a replica, or cannot save is found out; and the data's name.
    async fn check(&self) -> Result<(), StoreError> {
        self.run(|shared| async move {
            let mut commit = Commit::new(&shared.names, Tag::Owner);
            commit.expect(&shared.names.birth(), "id", Some(&shared.birth));
            commit.run("HSET", &shared.names.guard(Tag::Owner), 2, ["checked", "1"]);
            match shared.commit(&mut shared.link.wire().await?, &commit).await? {
                Sent::Done => Ok(()),
                _ => Err(StoreError::Engine(format!(
                    "{}: its data are not those this relay started with (emptied, or another Redis); accounts and \
                     keys in them are gone: restore a backup, or restart the relay to begin anew",
                    shared.link.address()
                ))),
            }
        })
        .await
    }
}
