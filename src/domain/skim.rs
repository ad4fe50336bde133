//! The fields of a JSON object, found without reading what is in them: a call's body is skimmed on its way through.
//!
//! Only the object itself is checked: names, colons, commas, and that brackets and strings end. What is wrong inside
//! a field is for whoever reads it, in the end the upstream. A full parser took four times as long for a body of
//! 80 KB, which was a quarter of what the whole request cost.

use memchr::memchr;
use std::borrow::Cow;
use std::ops::Range;

/// The fields of an object in the order in which they stand; ends with an `Err` where the text is no object.
pub struct Fields<'a> {
    text: &'a str,
    at: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Within,
    Over,
}

/// A field.
#[derive(Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, escapes resolved.
    pub name: Cow<'a, str>,
    /// Where its value stands, without white space around it.
    pub value: Range<usize>,
}

/// The text is no JSON object.
#[derive(Debug, PartialEq, Eq)]
pub struct NoObject;

/// The fields of `text`.
pub fn fields(text: &str) -> Fields<'_> {
    Fields { text, at: 0, state: State::Before }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, NoObject>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let next = self.field().transpose()?;
        if next.is_err() {
            self.state = State::Over;
        }
        Some(next)
    }
}

impl<'a> Fields<'a> {
    /// The next field; `None` after the object's end.
    fn field(&mut self) -> Result<Option<Field<'a>>, NoObject> {
        let first = self.state == State::Before;
        if first {
            self.expect(b'{')?;
            self.state = State::Within;
        }
        if self.peek() == Some(b'}') {
            return self.end();
        }
        if !first {
            self.expect(b',')?;
        }
        let name = self.name()?;
        self.expect(b':')?;
        let value = self.value()?;
        Ok(Some(Field { name, value }))
    }

    fn end(&mut self) -> Result<Option<Field<'a>>, NoObject> {
        self.at += 1;
        self.state = State::Over;
        if self.peek().is_none() { Ok(None) } else { Err(NoObject) }
    }

    /// The byte after white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let space = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += space;
        rest.get(space).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), NoObject> {
        if self.peek() != Some(byte) {
            return Err(NoObject);
        }
        self.at += 1;
        Ok(())
    }

    fn name(&mut self) -> Result<Cow<'a, str>, NoObject> {
        if self.peek() != Some(b'"') {
            return Err(NoObject);
        }
        let start = self.at;
        self.at = string_end(self.text.as_bytes(), start).ok_or(NoObject)?;
        let name = &self.text[start + 1..self.at - 1];
        if name.contains('\\') {
            let resolved = serde_json::from_str(&self.text[start..self.at]);
            return resolved.map(Cow::Owned).map_err(|_| NoObject);
        }
        Ok(Cow::Borrowed(name))
    }

    fn value(&mut self) -> Result<Range<usize>, NoObject> {
        let bytes = self.text.as_bytes();
        let first = self.peek().ok_or(NoObject)?;
        let start = self.at;
        let end = match first {
            b'"' => string_end(bytes, start),
            b'{' | b'[' => nested_end(bytes, start),
            _ => scalar_end(self.text, start),
        };
        self.at = end.ok_or(NoObject)?;
        Ok(start..self.at)
    }
}

/// Where the string that opens at `open` ends, its quote included.
fn string_end(bytes: &[u8], open: usize) -> Option<usize> {
    let mut from = open + 1;
    loop {
        let quote = from + memchr(b'"', &bytes[from..])?;
        // Escapes are many in prose, escaped quotes are few: it is quicker to look back from a quote.
        let escapes = bytes[from..quote].iter().rev().take_while(|b| **b == b'\\').count();
        from = quote + 1;
        if escapes % 2 == 0 {
            return Some(from);
        }
    }
}

/// Where the object or array that opens at `open` ends.
fn nested_end(bytes: &[u8], open: usize) -> Option<usize> {
    let (mut at, mut depth) = (open, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = string_end(bytes, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Where a number, `true`, `false` or `null` ends.
fn scalar_end(text: &str, start: usize) -> Option<usize> {
    let rest = &text[start..];
    let length = rest.find([',', '}', ' ', '\t', '\n', '\r']).unwrap_or(rest.len());
    serde_json::from_str::<serde::de::IgnoredAny>(&rest[..length]).ok()?;
    Some(start + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn read(text: &str) -> Result<Vec<(String, &str)>, NoObject> {
        fields(text).map(|f| f.map(|f| (f.name.into_owned(), &text[f.value]))).collect()
    }

    #[test]
    fn fields_are_found_whatever_is_in_them() {
        let text = "\t{ \"a\" : \"x\\\\\" ,\"b\\u0063\":[{\"}\":\"]\\\"\"},1],\n\"d\":-1.5e3 , \"\":{}}\r\n";
        let found = read(text).unwrap();
        let wanted = [("a", "\"x\\\\\""), ("bc", "[{\"}\":\"]\\\"\"},1]"), ("d", "-1.5e3"), ("", "{}")];
        assert_eq!(found, wanted.map(|(n, v)| (n.to_owned(), v)));
        assert_eq!(read("{}"), Ok(vec![]));
    }

    #[test]
    fn what_is_no_object_is_told() {
        for text in [
            "",
            " ",
            "[]",
            "1",
            "\"{}\"",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "{\"a\":tru}",
            "{\"a\":01}",
            "{\"a\":1 2}",
            "{\"a\":\"x}",
            "{\"a\":[}",
            "{\"a\":\"\\\"}",
            "{\"\\x\":1}",
            "{} x",
            "{}{}",
            "{\"a\":1\"b\":2}",
            "{\"a\":[1,{\"b\":2}",
            "\u{feff}{}",
        ] {
            assert_eq!(read(text), Err(NoObject), "{text}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
            "[\"\\\\{}\\[\\],: a-c\\n\u{1}é]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let name = "[\"\\\\{} a-cé]{0,4}";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(name, inner, 0..6).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_full_parser(value in json(), pretty in any::<bool>()) {
            let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let text = write(&value).unwrap();
            let found = read(&text);
            let Value::Object(map) = &value else {
                prop_assert_eq!(found, Err(NoObject));
                return Ok(());
            };
            let wanted: Vec<_> = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            let parsed = found.unwrap().into_iter().map(|(k, v)| (k, serde_json::from_str(v).unwrap()));
            prop_assert_eq!(parsed.collect::<Vec<(String, Value)>>(), wanted);
            for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
                prop_assert_eq!(read(&text[..end]), Err(NoObject));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\"\\\\{}\\[\\],: 1tré]{0,24}") {
            let _ = read(&text);
        }
    }
}
