//! Moves a store to another engine, and looks at the schema of one, for `claude-relay migrate`. No relay may run on
//! either side meanwhile: the data directory's lock and the owner's claim see to that.

use super::StartError;
use super::files::DataDir;
use crate::domain::Secret;
use crate::store::Stores;
use crate::store::copy::{self, CopyReport};
use crate::store::redis::{self, Claim, Forecast, RedisOptions, RedisStore, Status};
use crate::store::seal::Sealer;
use crate::store::sqlite::SqliteStore;
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
/// is that of `sealing_key`, else of the embedded store's directory, else of `data_dir`.
///
/// # Errors
/// When a relay runs on either side, the source does not exist or cannot be read whole, or the target is not empty.
pub async fn copy(
    from: &Place,
    to: &Place,
    data_dir: &Path,
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
    let keeper = from.data_dir().or(to.data_dir()).unwrap_or(data_dir);
    let sealer = Arc::new(Sealer::open_or_create(keeper, sealing_key)?);
    let ((source, source_claim), (target, target_claim)) = (from.open(&sealer).await?, to.open(&sealer).await?);
    let report = copy::copy(&source, &target, dry_run).await;
    for claim in [source_claim, target_claim].into_iter().flatten() {
        claim.release().await;
    }
    Ok(report?)
}

/// Every migration as it stands in this Redis.
///
/// # Errors
/// When Redis cannot be reached or read.
pub async fn status(options: &RedisOptions) -> Result<Vec<Status>, StartError> {
    Ok(redis::status(options).await?)
}

/// What the pending migrations would do.
///
/// # Errors
/// When Redis cannot be reached or read, or is newer than this binary.
pub async fn dry_run(options: &RedisOptions) -> Result<Vec<Forecast>, StartError> {
    Ok(redis::dry_run(options).await?)
}
