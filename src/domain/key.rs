//! What a client holds: a relay key, `cr_` and 64 hex digits, kept as a SHA-256 hash only.
//!
//! A key of 256 random bits needs no slow hash: there is nothing to guess. The plain key exists once, in the
//! answer that creates it.

use super::account::group_name;
use super::dispatch::Scope;
use super::document::{Document, Field, FieldError, Guard, wrong};
use super::{AccountId, Secret, Time};
use memchr::memmem;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// A key's identity, safe to show and log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Wraps an id made by the relay or read from the store.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

/// The SHA-256 of a plain key: what is stored and looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of whatever a client presented.
    pub fn of(presented: &str) -> Self {
        Self(Sha256::digest(presented.as_bytes()).into())
    }

    /// Reads the stored form, 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The stored form.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// Equality in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(***)")
    }
}

/// A key in the clear, on its way to the one who asked for it.
#[derive(Debug)]
pub struct PlainKey(Secret);

impl PlainKey {
    /// A key from 32 bytes of the operating system's generator.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(Secret::new(format!("cr_{}", hex::encode(bytes))))
    }

    /// The key itself.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What the store keeps.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.expose())
    }

    /// What lists show so that people can tell keys apart: `cr_0…cc`.
    pub fn mark(&self) -> String {
        self.0.mark().trim_end_matches(" (set)").to_owned()
    }
}

/// True if a plain relay key, by its form, stands anywhere in `text`.
pub fn is_within(text: &[u8]) -> bool {
    memmem::find_iter(text, b"cr_").any(|at| {
        let digits = text.get(at + 3..at + 67);
        digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    })
}

/// A key, checked and typed.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its identity.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// The stored hash.
    pub hash: KeyHash,
    /// `status` is `active`; a revoked key stays listed.
    pub active: bool,
    /// When it stops being accepted.
    pub expires_at: Option<Time>,
    /// Calls it may hold at once; `None` is no limit.
    pub concurrency_limit: Option<u32>,
    /// The accounts it may use.
    pub scope: Scope,
}

const fn field(name: &'static str, alias: Option<&'static str>, guard: Guard) -> Field {
    Field { name, alias, guard }
}

/// The fields of a key's record.
pub const FIELDS: &[Field] = &[
    field("name", None, Guard::Open),
    field("description", None, Guard::Open),
    field("status", None, Guard::Open),
    field("expires_at", Some("expiresAt"), Guard::Open),
    field("concurrencyLimit", Some("concurrency_limit"), Guard::Open),
    field("accounts", None, Guard::Open),
    field("groups", None, Guard::Open),
    field("id", None, Guard::Fixed),
    field("hash", None, Guard::Fixed),
    field("mark", None, Guard::Fixed),
    field("created_at", Some("createdAt"), Guard::Fixed),
    field("updated_at", Some("updatedAt"), Guard::Fixed),
];

impl Key {
    /// The typed view of a record, new or stored.
    ///
    /// # Errors
    /// Names the first field at fault.
    pub fn parse(doc: &Document) -> Result<Self, FieldError> {
        let id = doc.text("id")?.ok_or_else(|| FieldError::new("id", "missing in the stored record"))?;
        let hash = doc.text("hash")?.and_then(KeyHash::from_hex);
        let active = match doc.text("status")?.unwrap_or("active") {
            "active" => true,
            "revoked" | "disabled" => false,
            other => {
                return Err(FieldError::new("status", format!("expected active, disabled or revoked, got {other:?}")));
            }
        };
        Ok(Self {
            id: KeyId::new(id),
            name: doc
                .text("name")?
                .ok_or_else(|| FieldError::new("name", "required; say who will hold the key"))?
                .to_owned(),
            hash: hash.ok_or_else(|| FieldError::new("hash", "missing in the stored record"))?,
            active,
            expires_at: doc.time("expires_at")?,
            concurrency_limit: doc.integer("concurrencyLimit", 1..=100_000)?.and_then(|n| u32::try_from(n).ok()),
            scope: Scope::of(parse_accounts(doc)?, parse_groups(doc)?),
        })
    }

    /// True if the key is accepted at `now`.
    pub fn usable(&self, now: Time) -> bool {
        self.active && self.expires_at.is_none_or(|end| now < end)
    }
}

fn parse_accounts(doc: &Document) -> Result<Vec<AccountId>, FieldError> {
    let Some(value) = doc.get("accounts") else { return Ok(Vec::new()) };
    let expected = "a list of account ids";
    let list = value.as_array().ok_or_else(|| wrong("accounts", expected, value))?;
    list.iter()
        .map(|v| {
            let text = v.as_str().ok_or_else(|| wrong("accounts", expected, v))?;
            AccountId::parse(text).map_err(|e| FieldError::new("accounts", e.problem))
        })
        .collect()
}

fn parse_groups(doc: &Document) -> Result<Vec<Arc<str>>, FieldError> {
    let Some(value) = doc.get("groups") else { return Ok(Vec::new()) };
    let expected = "a list of group names";
    let list = value.as_array().ok_or_else(|| wrong("groups", expected, value))?;
    list.iter()
        .map(|v| {
            let text = v.as_str().ok_or_else(|| wrong("groups", expected, v))?;
            group_name("groups", text).map(Arc::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn groups(value: &Value) -> Result<Vec<String>, FieldError> {
        let mut doc = Document::default();
        doc.set("id", "k");
        doc.set("hash", KeyHash::of("k").to_hex());
        doc.apply(Document::from_input(json!({"name": "n", "groups": value}), FIELDS)?);
        match Key::parse(&doc)?.scope {
            Scope::All => Ok(Vec::new()),
            Scope::Only(binding) => Ok(binding.groups().iter().map(|g| g.to_string()).collect()),
        }
    }

    #[test]
    fn groups_are_a_list_of_names() {
        assert_eq!(groups(&json!(null)).unwrap(), [""; 0]);
        assert_eq!(groups(&json!([])).unwrap(), [""; 0]);
        assert_eq!(groups(&json!([" team a ", "b", "b"])).unwrap(), ["b", "team a"], "in order, each once");
        for bad in
            [json!("a"), json!({}), json!([1]), json!([""]), json!([" "]), json!(["a\nb"]), json!(["a".repeat(65)])]
        {
            assert_eq!(groups(&bad).expect_err(&bad.to_string()).field, "groups");
        }
    }

    #[test]
    fn a_plain_key_has_the_promised_form_and_hashes_to_what_is_looked_up() {
        let key = PlainKey::from_random([0xab; 32]);
        assert_eq!(key.expose().len(), 3 + 64);
        assert!(key.expose().starts_with("cr_abab"));
        assert!(KeyHash::of(key.expose()).matches(&key.hash()));
        assert_eq!(KeyHash::from_hex(&key.hash().to_hex()), Some(key.hash()));
        assert_eq!(key.mark(), "cr_a…ab");
    }
}
