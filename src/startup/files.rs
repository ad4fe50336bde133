//! The data directory: locked while a relay uses it, readable by its owner alone.

use super::StartError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A data directory that is ours while this value lives.
pub(super) struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    pub fn open(root: &Path) -> Result<Self, StartError> {
        private_dir(root)?;
        let path = root.join("lock");
        let named = || path.display().to_string();
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(StartError::file(named()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::Locked(root.display().to_string())),
            Err(TryLockError::Error(error)) => Err(StartError::File { what: named(), error }),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory's own name, 8 hex digits, which it keeps; `fresh` if it has none yet.
    pub fn name(&self, fresh: String) -> Result<String, StartError> {
        let path = self.path("id");
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().len() == 8 && text.trim().bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(text.trim().to_owned())
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StartError::File { what: path.display().to_string(), error })
            }
            _ => self.write_private("id", &fresh).map(|()| fresh),
        }
    }

    /// Writes a file that only its owner may read, in one step.
    pub fn write_private(&self, name: &str, line: &str) -> Result<(), StartError> {
        let (path, draft) = (self.path(name), self.path(&format!("{name}.new")));
        let write = || {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
            writeln!(file, "{line}")?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().map_err(StartError::file(path.display().to_string()))
    }

    /// Tells the local CLI where to call; a wildcard address is told as loopback.
    pub fn write_admin_url(&self, mut addr: SocketAddr) -> Result<(), StartError> {
        if addr.ip().is_unspecified() {
            addr.set_ip(if addr.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
        }
        self.write_private("admin-url", &format!("http://{addr}"))
    }

    pub fn remove_admin_url(&self) {
        // Gone already is as good.
        let _ = fs::remove_file(self.path("admin-url"));
    }
}

/// Makes a directory that only its owner may enter; one that is there keeps its mode.
pub(super) fn private_dir(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(StartError::file(format!("directory {}", path.display())))
}
