//! Where the client commands take secrets and records from: a file, standard input, a named variable.
//!
//! Called by `account` and `key`. There is no way to give a secret as an argument: arguments show in `ps` and in the
//! shell's history.

use super::Failure;
use crate::domain::Secret;
use crate::settings::secret_variable;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// Reads a JSON object from `file`; `-` is standard input.
pub fn read_object(file: &Path) -> Result<Map<String, Value>, Failure> {
    let stdin = file == Path::new("-");
    let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
    let mut bytes = Zeroizing::new(Vec::new());
    let read = if stdin {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_end(&mut bytes))
    };
    read.map_err(|e| Failure::Usage(format!("{name}: {e}")))?;
    parse_object(&bytes).map_err(|problem| Failure::Usage(format!("{name}: {problem}")))
}

/// The values stay out of the errors: they may be secrets.
fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    // Editors and shells on Windows put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err("is empty; expected a JSON object".to_owned());
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Array(_)) => Err("expected one JSON object, found a list; add accounts one by one".to_owned()),
        Ok(_) => Err("expected a JSON object such as {\"name\": …, \"platform\": …}".to_owned()),
        Err(e) => Err(format!("not JSON: {e}")),
    }
}

/// The value of the environment variable that `flag` names.
pub fn read_variable(flag: &str, name: &str) -> Result<Secret, Failure> {
    let found = secret_variable(name).filter(|value| !value.expose().trim().is_empty());
    // The name is not repeated: somebody may have put the secret itself there.
    found.ok_or_else(|| Failure::Usage(format!("{flag} names an environment variable, and that one is not set")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_tolerated() {
        assert_eq!(parse_object(b"\xef\xbb\xbf{\"a\":1}\n").unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_object_is_refused_without_quoting_it() {
        for text in ["", " \n", "[{}]", "\"s3cret\"", "{\"session_token\": s3cret}", "{\"a\":1} s3cret", "{", "\u{0}"] {
            let problem = parse_object(text.as_bytes()).expect_err(text);
            assert!(!problem.contains("s3cret"), "{text}: {problem}");
        }
    }
}
