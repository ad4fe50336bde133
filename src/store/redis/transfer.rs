//! What [`crate::store::copy`] needs of this engine beyond the other faces.
//!
//! Called through [`Transfer`] while no relay runs. Sums that come from another store go into the first tag of
//! usage: reading adds all tags up.

use super::commit::Commit;
use super::keys::Tag;
use super::ledger::AT;
use super::records::{ACCOUNT, KEY};
use super::sums::Sum;
use super::{RedisStore, Shared};
use crate::store::{Begun, Counts, Restored, StoreError, Transfer, UsageFilter, UsageLedger, UsageRow};
use async_trait::async_trait;
use deadpool_redis::redis::cmd;
use std::collections::BTreeMap;

#[async_trait]
impl Transfer for RedisStore {
    async fn counts(&self) -> Result<Counts, StoreError> {
        let (sums, offsets) = (self.sums(&UsageFilter::default()).await?.len(), self.offsets().await?.len());
        self.run(|shared| async move {
            let mut wire = shared.link.wire().await?;
            let open = Tag::usage().map(|tag| cmd("HLEN").arg(shared.names.open(tag)).clone());
            let open: Vec<u64> = wire.ask_each(&open.collect::<Vec<_>>()).await?;
            Ok(Counts {
                accounts: wire.ask(cmd("SCARD").arg(shared.names.ids(ACCOUNT.tag))).await?,
                keys: wire.ask(cmd("SCARD").arg(shared.names.ids(KEY.tag))).await?,
                facts: wire.ask(cmd("HLEN").arg(shared.names.facts())).await?,
                sums: sums as u64,
                open: open.iter().sum(),
                offsets: offsets as u64,
            })
        })
        .await
    }

    async fn facts(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.run(|shared| async move {
            let facts: BTreeMap<_, _> = shared.link.wire().await?.ask(cmd("HGETALL").arg(shared.names.facts())).await?;
            Ok(facts.into_iter().collect())
        })
        .await
    }

    async fn open_calls(&self) -> Result<Vec<Begun>, StoreError> {
        self.run(|shared| async move {
            let (mut wire, mut open) = (shared.link.wire().await?, Vec::new());
            for tag in Tag::usage() {
                open.extend(shared.open_calls(&mut wire, tag).await?);
            }
            open.sort_by(|a, b| a.call.cmp(&b.call));
            Ok(open)
        })
        .await
    }

    async fn clear_usage(&self) -> Result<(), StoreError> {
        self.run(|shared| async move {
            let mut wire = shared.link.wire().await?;
            for tag in Tag::usage() {
                let (names, mut commit) = (&shared.names, Commit::new(&shared.names, tag));
                let days: Vec<String> = wire.ask(cmd("SMEMBERS").arg(names.days(tag))).await?;
                let guard: BTreeMap<String, String> = wire.ask(cmd("HGETALL").arg(names.guard(tag))).await?;
                for day in days {
                    commit.run_bare("DEL", &names.sums(tag, &day));
                }
                commit.run_bare("DEL", &names.days(tag));
                commit.run_bare("DEL", &names.open(tag));
                let offsets: Vec<String> = guard.into_keys().filter(|field| field.starts_with(AT)).collect();
                commit.run("HDEL", &names.guard(tag), 1, offsets);
                shared.commit(&mut wire, &commit).await?;
            }
            Ok(())
        })
        .await
    }

    async fn restore(&self, items: Restored) -> Result<(), StoreError> {
        self.run(|shared| async move { shared.restore_all(items).await }).await
    }
}

impl Shared {
    async fn restore_all(&self, items: Restored) -> Result<(), StoreError> {
        let mut wire = self.link.wire().await?;
        match items {
            Restored::Accounts(records) => {
                for record in records {
                    self.restore(&ACCOUNT, &mut wire, record).await?;
                }
            }
            Restored::Keys(records) => {
                for record in records {
                    self.restore(&KEY, &mut wire, record).await?;
                }
            }
            Restored::Sums(rows) => {
                let commit = self.restored_sums(rows);
                self.commit(&mut wire, &commit).await?;
            }
            Restored::Open(calls) => {
                for begun in calls {
                    let tag = Tag::of_call(&begun.call);
                    let text = serde_json::to_string(&begun).map_err(|e| StoreError::Engine(e.to_string()))?;
                    let mut commit = Commit::new(&self.names, tag);
                    commit.run("HSET", &self.names.open(tag), 2, [begun.call, text]);
                    self.commit(&mut wire, &commit).await?;
                }
            }
            Restored::Offsets(offsets) => {
                for (file, offset) in offsets {
                    let mut commit = Commit::new(&self.names, Tag::of_file(&file));
                    let guard = self.names.guard(Tag::of_file(&file));
                    commit.run("HSET", &guard, 2, [format!("{AT}{file}"), offset.to_string()]);
                    self.commit(&mut wire, &commit).await?;
                }
            }
        }
        Ok(())
    }

    fn restored_sums(&self, rows: Vec<UsageRow>) -> Commit {
        let tag = Tag::Usage(0);
        let mut days: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in rows {
            let (group, sum) = Sum::of_row(&row);
            days.entry(row.day).or_default().extend([group.field(), sum.text()]);
        }
        let mut commit = Commit::new(&self.names, tag);
        for (day, fields) in days {
            commit.run("SADD", &self.names.days(tag), 1, [day.as_str()]);
            commit.run("HSET", &self.names.sums(tag, &day), 2, fields);
        }
        commit
    }
}
