//! Accounts' events in a list each, beside their records, cut as new ones come.

use super::RedisStore;
use super::commit::Commit;
use super::keys::Tag;
use crate::domain::AccountId;
use crate::store::{EVENTS_KEPT, Event, Events, StoreError};
use async_trait::async_trait;
use deadpool_redis::redis::cmd;

#[async_trait]
impl Events for RedisStore {
    async fn add_event(&self, id: &AccountId, event: Event) -> Result<(), StoreError> {
        let id = id.to_string();
        let text = serde_json::to_string(&event).map_err(|e| StoreError::Engine(e.to_string()))?;
        self.run(|shared| async move {
            let key = shared.names.events(&id);
            let mut commit = Commit::new(&shared.names, Tag::Accounts);
            commit.run("RPUSH", &key, 1, [text]);
            commit.run("LTRIM", &key, 2, [format!("-{EVENTS_KEPT}"), "-1".to_owned()]);
            shared.commit(&mut shared.link.wire().await?, &commit).await.map(drop)
        })
        .await
    }

    async fn add_if_news(&self, id: &AccountId, event: Event) -> Result<(), StoreError> {
        let text = id.to_string();
        let last = self.run(|shared| async move {
            let key = shared.names.events(&text);
            let last: Vec<String> = shared.link.wire().await?.ask(cmd("LRANGE").arg(key).arg(-1).arg(-1)).await?;
            Ok(last)
        });
        match event.is_news_after(last.await?.first().map(String::as_str)) {
            true => self.add_event(id, event).await,
            false => Ok(()),
        }
    }

    async fn events(&self, id: &AccountId) -> Result<Vec<Event>, StoreError> {
        let id = id.to_string();
        self.run(|shared| async move {
            let key = shared.names.events(&id);
            let texts: Vec<String> = shared.link.wire().await?.ask(cmd("LRANGE").arg(key).arg(0).arg(-1)).await?;
            // One that a newer relay wrote otherwise must not hide the rest.
            Ok(texts.iter().rev().filter_map(|text| serde_json::from_str(text).ok()).collect())
        })
        .await
    }
}
