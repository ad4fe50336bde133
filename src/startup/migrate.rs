//! Moves a store to another engine, and looks at the schema of one, for `claude-relay migrate`. No relay may run on
//! either side meanwhile: the data directory's lock and the owner's claim see to that.

use super::StartError;
use super::files::DataDir;
use crate::domain::Secret;
use crate::store::Stores;
use crate::store::copy::{self, CopyReport};
use crate::store::migration::{Forecast, Status};
use crate::store::redis::{self, Claim, RedisOptions, RedisStore};
use crate::store::seal::{self, KEY_FILE, Sealer};
use crate::store::sqlite::{self, SqliteStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One side of a move.
pub enum Place {
    /// An embedded store: the path of its database, `relay.db` in a data directory.
    Sqlite(PathBuf),
    /// A Redis.
    Redis(Box<RedisOptions>),
}

impl Place {
    fn data_dir(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path.parent().unwrap_or(Path::new("."))),
            Self::Redis(_) => None,
        }
    }

    async fn open(&self, sealer: &Arc<Sealer>) -> Result<(Stores, Option<Claim>), StartError> {
        Ok(match self {
            Self::Sqlite(path) => (SqliteStore::open(path, sealer.clone())?.into_stores(), None),
            Self::Redis(options) => {
                let store = RedisStore::connect(options, sealer.clone()).await?;
                let claim = store.claim();
                (store.into_stores(), Some(claim))
            }
        })
    }
}

/// Copies everything but the rows of single calls; run again, it goes on where it was interrupted. The sealing key
/// is `sealing_key`, else that of `data_dir`, else that of the embedded store's directory; a new embedded store gets
/// a copy of it.
///
/// # Errors
/// When a relay runs on either side, the source does not exist or cannot be read whole, or the target is not empty.
pub async fn copy(
    from: &Place,
    to: &Place,
    data_dir: Option<&Path>,
    sealing_key: Option<&Secret>,
    dry_run: bool,
) -> Result<CopyReport, StartError> {
    if let Place::Sqlite(path) = from
        && !path.is_file()
    {
        return Err(StartError::file(path.display().to_string())(std::io::ErrorKind::NotFound.into()));
    }
    let mut locked = Vec::new();
    for dir in [from, to].into_iter().filter_map(Place::data_dir) {
        locked.push(DataDir::open(dir)?);
    }
    let keeper = data_dir.or(from.data_dir()).or(to.data_dir()).unwrap_or(Path::new("./data"));
    // A new key could open nothing of what is there.
    if sealing_key.is_none() && !keeper.join(KEY_FILE).is_file() {
        let missing = keeper.join(KEY_FILE).display().to_string();
        return Err(StartError::file(missing)(std::io::ErrorKind::NotFound.into()));
    }
    let sealer = Arc::new(Sealer::open_or_create(keeper, sealing_key)?);
    let ((source, source_claim), (target, target_claim)) = (from.open(&sealer).await?, to.open(&sealer).await?);
    let moved = async {
        same_key(&source, &sealer).await?;
        if !dry_run {
            // First of all: a relay must not take the target for one that a key of its own could seal.
            target.facts.set_fact(seal::FACT, sealer.key_id()).await?;
        }
        Ok(copy::copy(&source, &target, dry_run).await?)
    };
    let report = moved.await;
    if let (Ok(_), Some(dir), None, false) = (&report, to.data_dir(), sealing_key, dry_run)
        && dir != keeper
    {
        // The embedded store finds its key beside it.
        std::fs::copy(keeper.join(KEY_FILE), dir.join(KEY_FILE)).map_err(StartError::file(KEY_FILE))?;
    }
    for claim in [source_claim, target_claim].into_iter().flatten() {
        claim.release().await;
    }
    report
}

/// The source must be sealed by the key at hand.
async fn same_key(source: &Stores, sealer: &Sealer) -> Result<(), StartError> {
    match source.facts.fact(seal::FACT).await? {
        Some(stored) if stored != sealer.key_id() => {
            Err(StartError::OtherSealingKey { stored, given: sealer.key_id().to_owned() })
        }
        _ => Ok(()),
    }
}

/// Every migration as it stands there. Locks and changes nothing.
///
/// # Errors
/// When the store cannot be reached or read.
pub async fn status(place: &Place) -> Result<Vec<Status>, StartError> {
    Ok(match place {
        Place::Sqlite(path) => sqlite::status(path)?,
        Place::Redis(options) => redis::status(options).await?,
    })
}

/// What the pending migrations would do. Changes nothing.
///
/// # Errors
/// When the store cannot be reached or read, or is newer than this binary.
pub async fn dry_run(place: &Place) -> Result<Vec<Forecast>, StartError> {
    Ok(match place {
        Place::Sqlite(path) => sqlite::dry_run(path)?,
        Place::Redis(options) => redis::dry_run(options).await?,
    })
}
