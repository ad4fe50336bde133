//! Which store a relay runs on: the embedded one in the data directory, or Redis where the settings name it.

use super::files::DataDir;
use super::{StartError, first_run};
use crate::settings::Settings;
use crate::store::redis::{Claim, RedisStore};
use crate::store::seal::Sealer;
use crate::store::sqlite::SqliteStore;
use crate::store::{Stores, copy};
use std::sync::Arc;

/// An open store, and this relay's claim on it where it is shared.
pub(super) struct Opened {
    pub stores: Stores,
    pub claim: Option<Claim>,
}

/// Opens it, and checks that it is whole and sealed by the key at hand.
pub(super) async fn open(settings: &Settings, dir: &DataDir) -> Result<Opened, StartError> {
    let sealer = Arc::new(Sealer::open_or_create(&settings.data_dir, settings.sealing_key.as_ref())?);
    let opened = match settings.redis_options() {
        None => {
            let stores = SqliteStore::open(&dir.path("relay.db"), sealer.clone())?.into_stores();
            Opened { stores, claim: None }
        }
        Some(options) => {
            let store = RedisStore::connect(&options, sealer.clone()).await?;
            let claim = Some(store.claim());
            Opened { stores: store.into_stores(), claim }
        }
    };
    if opened.stores.facts.fact(copy::FACT).await?.as_deref() == Some(copy::UNDER_WAY) {
        return Err(StartError::UnfinishedCopy);
    }
    first_run::same_sealing_key(&opened.stores, &sealer).await?;
    Ok(opened)
}

/// Ends the process when another relay has taken the store over: nothing that it did could be kept any more.
pub(super) fn end_when_lost(claim: &Claim) {
    let mut lost = claim.lost();
    actix_web::rt::spawn(async move {
        if let Ok(reason) = lost.wait_for(Option::is_some).await {
            let reason = reason.clone().unwrap_or_default();
            eprintln!("claude-relay: {reason}; the process ends");
            std::process::exit(super::parts::EXIT_FATAL);
        }
    });
}
