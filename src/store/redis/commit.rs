//! The one way this engine writes: commands that are run together if the owner is still the owner and what was
//! read before has not changed.
//!
//! Used by records, ledger and facts. What to write is worked out in Rust, where it is typed and tested, from
//! values read before; the script only compares and writes, so it is the same for everything, and every write is
//! fenced because there is no other. Commands run in their order; Redis does not undo those before one that
//! fails, so the one that says "done" comes last.

use super::keys::{KeyNames, Tag};
use super::link::Wire;
use crate::store::StoreError;
use deadpool_redis::redis::Script;
use std::sync::LazyLock;

/// Lua hands at most some 8,000 values to one call.
const MOST_ARGUMENTS: usize = 4_000;

/// KEYS: the tag's guard, then every other key. ARGV: the token; the conditions, counted, three each (key, field,
/// and `=value` or nothing); the commands, each with its length first. Gives 0 when done, the number of the first
/// condition that is not met, or -1 when the token is too old.
static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local fence = tonumber(redis.call('HGET', KEYS[1], 'fence') or '0')
if tonumber(ARGV[1]) < fence then return -1 end
local at = 1
local function take()
  at = at + 1
  return ARGV[at]
end
for nth = 1, tonumber(take()) do
  local key = KEYS[tonumber(take())]
  local field = take()
  local found = redis.call('HGET', key, field)
  if (found and '=' .. found or '') ~= take() then return nth end
end
while at < #ARGV do
  local count = tonumber(take())
  local command = { take(), KEYS[tonumber(take())] }
  for nth = 3, count do command[nth] = take() end
  redis.call(unpack(command))
end
return 0
",
    )
});

/// What came of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it is written.
    Done,
    /// Nothing is: the condition of this number, from 0, does not hold.
    Unmet(usize),
    /// Nothing is: another relay owns the store now.
    Fenced,
}

/// Conditions and commands on the keys of one tag.
pub struct Commit {
    keys: Vec<String>,
    conditions: Vec<Vec<u8>>,
    commands: Vec<Vec<u8>>,
}

impl Commit {
    /// Nothing yet, for this tag.
    pub fn new(names: &KeyNames, tag: Tag) -> Self {
        Self { keys: vec![names.guard(tag)], conditions: Vec::new(), commands: Vec::new() }
    }

    /// Only if the hash at `key` has this `value` in `field`, or no such field.
    pub fn expect(&mut self, key: &str, field: &str, value: Option<&str>) {
        let key = self.key(key);
        let value = value.map_or(String::new(), |value| format!("={value}"));
        self.conditions.extend([key, field.to_owned(), value].map(String::into_bytes));
    }

    /// Runs `name key arguments…`; several times where there are many, `each` of them belonging together.
    pub fn run<T: Into<Vec<u8>>>(
        &mut self,
        name: &str,
        key: &str,
        each: usize,
        arguments: impl IntoIterator<Item = T>,
    ) {
        let key = self.key(key);
        let arguments: Vec<Vec<u8>> = arguments.into_iter().map(Into::into).collect();
        for part in arguments.chunks(MOST_ARGUMENTS / each * each) {
            self.commands.extend([(2 + part.len()).to_string(), name.to_owned(), key.clone()].map(String::into_bytes));
            self.commands.extend_from_slice(part);
        }
    }

    /// Runs `name key`.
    pub fn run_bare(&mut self, name: &str, key: &str) {
        let key = self.key(key);
        self.commands.extend(["2".to_owned(), name.to_owned(), key].map(String::into_bytes));
    }

    /// The key's place among the script's keys.
    fn key(&mut self, key: &str) -> String {
        let place = self.keys.iter().position(|known| known == key).unwrap_or_else(|| {
            self.keys.push(key.to_owned());
            self.keys.len() - 1
        });
        (place + 1).to_string()
    }

    /// Does it, as the owner with `token`.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when Redis fails; then it is not known whether anything was written.
    pub async fn send(&self, wire: &mut Wire, token: u64) -> Result<Sent, StoreError> {
        let mut call = SCRIPT.prepare_invoke();
        call.key(&self.keys).arg(token).arg(self.conditions.len() / 3).arg(&self.conditions).arg(&self.commands);
        let answer: i64 = wire.run(&call).await?;
        Ok(match usize::try_from(answer) {
            Ok(0) => Sent::Done,
            Ok(nth) => Sent::Unmet(nth - 1),
            Err(_) => Sent::Fenced,
        })
    }
}
