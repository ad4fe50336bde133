//! Seals secrets for the disk: XChaCha20-Poly1305 under one key of 32 bytes, from a file or the environment.
//!
//! Called by the store engines, and by start-up to open the key. The context (kind, id and field of a record)
//! is authenticated with the text, so a sealed value that is moved to another record or field does not open.

use super::StoreError;
use crate::domain::Secret;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The file that holds the key, inside the data directory.
pub const KEY_FILE: &str = "sealing.key";

/// The name of the fact that tells by which key a store's secrets are sealed.
pub const FACT: &str = "sealing_key_id";

const PREFIX: &str = "sealed:v1:";
const NONCE_LEN: usize = 24;
type KeyBytes = Zeroizing<[u8; 32]>;

/// Why there is no sealing key. `Display` names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file could not be read or made.
    #[error("{path}: {source}; the relay must be able to read and, at its first start, to create this file")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may use the key file.
    #[error("{path}: mode {mode:03o} lets others at the sealing key; run: chmod 600 {path}")]
    Open {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file does not hold a key.
    #[error(
        "{path}: expected 64 hex digits; restore it from a backup, or, if nothing was sealed yet, remove it and \
         start again to get a new one"
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// The environment's value is not a key.
    #[error("the sealing key in the environment must be 64 hex digits; make one with: openssl rand -hex 32")]
    MalformedEnv,
    /// The operating system gave no random bytes.
    #[error("no random bytes for a new sealing key: {0}")]
    Random(String),
}

/// Holds the sealing key; prints only its id.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    key_id: String,
}

impl Sealer {
    /// The sealer with the key of `from_env` (64 hex digits), or else of `data_dir/sealing.key`, which is made
    /// with mode 0600 if it is not there.
    ///
    /// # Errors
    /// When the key file cannot be read or made, others may use it, or either source is malformed.
    pub fn open_or_create(data_dir: &Path, from_env: Option<&Secret>) -> Result<Self, SealError> {
        if let Some(text) = from_env {
            return parse_key(text.expose()).map(|key| Self::new(&key)).ok_or(SealError::MalformedEnv);
        }
        let path = data_dir.join(KEY_FILE);
        let failed = |source| SealError::Io { path: path.clone(), source };
        match create_key(data_dir, &path)? {
            Some(key) => return Ok(Self::new(&key)),
            None => tracing::debug!(path = %path.display(), "using the sealing key that is there"),
        }
        let mode = fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SealError::Open { path, mode });
        }
        let text = Zeroizing::new(fs::read(&path).map_err(failed)?);
        let key = std::str::from_utf8(&text).ok().and_then(parse_key);
        key.map(|key| Self::new(&key)).ok_or(SealError::Malformed { path })
    }

    fn new(key: &KeyBytes) -> Self {
        let key_id = hex::encode(&Sha256::digest(key.as_slice())[..4]);
        Self { cipher: XChaCha20Poly1305::new(key.as_slice().into()), key_id }
    }

    /// The first 8 hex digits of the key's SHA-256, as they stand in every sealed value.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals `plain`; only [`Sealer::unseal`] with the same `context` opens it again.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the operating system gives no random bytes for the nonce.
    pub fn seal(&self, context: &str, plain: &str) -> Result<String, StoreError> {
        let failed = |e: &dyn fmt::Display| StoreError::Engine(format!("{context}: cannot be sealed: {e}"));
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|e| failed(&e))?;
        let payload = Payload { msg: plain.as_bytes(), aad: context.as_bytes() };
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|e| failed(&e))?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        Ok(format!("{PREFIX}{}:{}", self.key_id, BASE64.encode(bytes)))
    }

    /// Opens what [`Sealer::seal`] made of the same `context`.
    ///
    /// # Errors
    /// [`StoreError::Unseal`], with the context and what is wrong, when `sealed` has another form, was sealed
    /// with another key or for another context, or was changed.
    pub fn unseal(&self, context: &str, sealed: &str) -> Result<Secret, StoreError> {
        let refused = |why: &str| StoreError::Unseal(format!("{context} ({why})"));
        let (key_id, body) = sealed
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| refused("not in sealed form"))?;
        if key_id != self.key_id {
            return Err(refused(&format!("sealed with key {key_id}, this is key {}", self.key_id)));
        }
        let bytes = BASE64.decode(body).map_err(|_| refused("not in sealed form"))?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or_else(|| refused("not in sealed form"))?;
        let payload = Payload { msg: text, aad: context.as_bytes() };
        let plain = self.cipher.decrypt(XNonce::from_slice(nonce), payload);
        let plain = plain.map_err(|_| refused("changed, or moved here from another record"))?;
        String::from_utf8(plain).map(Secret::new).map_err(|_| refused("not text"))
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(key {})", self.key_id)
    }
}

/// Makes the key file with a new key; `None` if it is there already.
fn create_key(data_dir: &Path, path: &Path) -> Result<Option<KeyBytes>, SealError> {
    let failed = |source| SealError::Io { path: path.to_owned(), source };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let written = (|| {
        let mut key = KeyBytes::default();
        getrandom::fill(key.as_mut_slice()).map_err(|e| SealError::Random(e.to_string()))?;
        let text = Zeroizing::new(hex::encode(key.as_slice()) + "\n");
        // Synced with its directory: a power loss must not take the key of secrets that the database has kept.
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(key)
    })();
    if written.is_err() {
        // Half a key would be refused as malformed at every later start.
        let _ = fs::remove_file(path);
    }
    written.map(Some)
}

fn parse_key(text: &str) -> Option<KeyBytes> {
    let mut key = KeyBytes::default();
    hex::decode_to_slice(text.trim(), key.as_mut_slice()).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: &str) -> Sealer {
        Sealer::open_or_create(Path::new("/nonexistent"), Some(&Secret::new(byte.repeat(32)))).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place_and_with_its_key() {
        let (one, other) = (sealer("ab"), sealer("cd"));
        let sealed = one.seal("account a api_key", "sk-ant-1").unwrap();
        assert!(sealed.starts_with(&format!("sealed:v1:{}:", one.key_id())) && !sealed.contains("sk-ant"));
        assert_ne!(sealed, one.seal("account a api_key", "sk-ant-1").unwrap());
        assert_eq!(one.unseal("account a api_key", &sealed).unwrap().expose(), "sk-ant-1");
        let wrong_key = other.unseal("account a api_key", &sealed).unwrap_err().to_string();
        assert!(wrong_key.contains(one.key_id()) && wrong_key.contains(other.key_id()), "{wrong_key}");
        let flipped = sealed.replace(&sealed[sealed.len() - 9..sealed.len() - 8], "_");
        for (context, text) in [
            ("account b api_key", sealed.as_str()),
            ("account a api_key", "sk-ant-1"),
            ("account a api_key", "sealed:v1:"),
            ("account a api_key", &format!("sealed:v1:{}:AAAA", one.key_id())),
            ("account a api_key", &flipped),
        ] {
            assert!(matches!(one.unseal(context, text), Err(StoreError::Unseal(_))), "{context} {text}");
        }
    }

    #[test]
    fn the_key_file_is_made_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Sealer::open_or_create(dir.path(), None).unwrap();
        let path = dir.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Sealer::open_or_create(dir.path(), None).unwrap().key_id(), first.key_id());
        let key = fs::read_to_string(&path).unwrap();
        assert!(!format!("{first:?}").contains(&key[..8]), "the key is printed");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_malformed_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        Sealer::open_or_create(dir.path(), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Sealer::open_or_create(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("640") && error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "abc", &"zz".repeat(32), &"ab".repeat(33)] {
            fs::write(&path, text).unwrap();
            let error = Sealer::open_or_create(dir.path(), None).unwrap_err();
            assert!(matches!(error, SealError::Malformed { .. }) && error.to_string().contains("sealing.key"));
        }
        let env = Sealer::open_or_create(dir.path(), Some(&Secret::new("12")));
        assert!(matches!(env, Err(SealError::MalformedEnv)));
    }
}
