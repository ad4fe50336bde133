//! A string that must not be shown: upstream tokens, admin tokens, relay keys before they are handed out.
//!
//! It prints as `***` and is wiped on drop; whoever needs the value says so with [`Secret::expose`].

use std::fmt;
use zeroize::Zeroizing;

/// A secret text. `Debug` prints `***`; there is no `Display` and no `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The value itself, for the one place that puts it on the wire or seals it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What an operator is shown instead: `cr_0…cc (set)`, or `*** (set)` where so much would give it away.
    pub fn mark(&self) -> String {
        let chars: Vec<char> = self.0.chars().collect();
        if chars.len() < 16 {
            return "*** (set)".to_owned();
        }
        let head: String = chars[..4].iter().collect();
        let tail: String = chars[chars.len() - 2..].iter().collect();
        format!("{head}…{tail} (set)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("sk-ant-0123456789abcdef");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.mark(), "sk-a…ef (set)");
        assert_eq!(Secret::new("short").mark(), "*** (set)");
    }
}
