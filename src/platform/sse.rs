//! A scanner over an event stream that reads only the events it was told of, whatever the chunk boundaries.
//!
//! It forwards nothing: the tap passes every byte on untouched, and shows it to the scanner on the way. Lines
//! that cannot matter are skipped with `memchr`, never copied. The grammar is the WHATWG's (HTML, 9.2.6): lines
//! end in LF, CRLF or CR, a blank line ends an event, and fields come in any order.

use memchr::memchr2;

/// No event that matters is larger; what is, is passed on unread.
const LARGEST_EVENT: usize = 1 << 20;

/// Receives the events that matter.
pub trait Events {
    /// True if an event of this name should be collected.
    fn wants(name: &str) -> bool;
    /// A whole event: its `event` field, if there was one, and its `data`.
    fn event(&mut self, name: Option<&str>, data: &[u8]);
}

/// Where in a line the scanner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Collecting the field's name, or nothing yet.
    Head,
    /// In the value of `event`.
    Name,
    /// In the value of `data`, which is kept.
    Data,
    /// In something that does not matter.
    Skip,
}

/// The scanner's state between chunks.
#[derive(Debug)]
pub struct Scanner {
    line: Line,
    head: [u8; 6],
    head_len: usize,
    value_started: bool,
    after_cr: bool,
    name: Vec<u8>,
    data: Vec<u8>,
    has_name: bool,
    has_field: bool,
    wanted: bool,
    overflow: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            line: Line::Head,
            head: [0; 6],
            head_len: 0,
            value_started: false,
            after_cr: false,
            name: Vec::new(),
            data: Vec::new(),
            has_name: false,
            has_field: false,
            wanted: true,
            overflow: false,
        }
    }
}

impl Scanner {
    /// True between events: nothing of the next one has been seen.
    pub fn at_boundary(&self) -> bool {
        !self.has_field && self.line == Line::Head && self.head_len == 0
    }

    /// Shows the scanner the next bytes.
    pub fn feed<E: Events>(&mut self, mut bytes: &[u8], events: &mut E) {
        while !bytes.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if bytes[0] == b'\n' {
                    bytes = &bytes[1..];
                    continue;
                }
            }
            if self.line == Line::Head {
                bytes = self.head::<E>(bytes, events);
                continue;
            }
            let end = memchr2(b'\n', b'\r', bytes);
            self.value(&bytes[..end.unwrap_or(bytes.len())]);
            let Some(end) = end else { return };
            self.after_cr = bytes[end] == b'\r';
            self.end_of_line::<E>();
            bytes = &bytes[end + 1..];
        }
    }

    /// Reads a field's name byte by byte: at most six are needed to know it.
    fn head<'a, E: Events>(&mut self, bytes: &'a [u8], events: &mut E) -> &'a [u8] {
        for (i, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    if self.head_len == 0 {
                        self.end_of_event(events);
                    } else {
                        self.has_field = true;
                        self.head_len = 0;
                    }
                    return &bytes[i + 1..];
                }
                b':' => {
                    self.line = self.field();
                    self.value_started = false;
                    return &bytes[i + 1..];
                }
                _ if self.head_len == self.head.len() => {
                    self.line = Line::Skip;
                    return &bytes[i..];
                }
                _ => {
                    self.head[self.head_len] = byte;
                    self.head_len += 1;
                }
            }
        }
        &[]
    }

    fn field(&mut self) -> Line {
        match &self.head[..self.head_len] {
            b"event" => {
                self.name.clear();
                self.has_name = true;
                Line::Name
            }
            b"data" if self.wanted => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                Line::Data
            }
            _ => Line::Skip,
        }
    }

    fn value(&mut self, mut part: &[u8]) {
        if !self.value_started && !part.is_empty() {
            self.value_started = true;
            part = part.strip_prefix(b" ").unwrap_or(part);
        }
        let into = match self.line {
            Line::Name => &mut self.name,
            Line::Data => &mut self.data,
            Line::Head | Line::Skip => return,
        };
        if into.len() + part.len() > LARGEST_EVENT {
            self.overflow = true;
            self.line = Line::Skip;
            return;
        }
        into.extend_from_slice(part);
    }

    fn end_of_line<E: Events>(&mut self) {
        if self.line == Line::Name {
            self.wanted = std::str::from_utf8(&self.name).is_ok_and(E::wants);
            if !self.wanted {
                self.data.clear();
            }
        }
        self.has_field = true;
        self.line = Line::Head;
        self.head_len = 0;
    }

    fn end_of_event<E: Events>(&mut self, events: &mut E) {
        if self.wanted && !self.overflow && !self.data.is_empty() {
            let name = std::str::from_utf8(&self.name).ok().filter(|_| self.has_name);
            events.event(name, &self.data);
        }
        self.name.clear();
        self.data.clear();
        self.has_name = false;
        self.has_field = false;
        self.wanted = true;
        self.overflow = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, PartialEq, Debug)]
    struct Seen(Vec<(Option<String>, String)>);

    impl Events for Seen {
        fn wants(name: &str) -> bool {
            name != "dull"
        }
        fn event(&mut self, name: Option<&str>, data: &[u8]) {
            self.0.push((name.map(str::to_owned), String::from_utf8(data.to_vec()).unwrap()));
        }
    }

    fn scan(text: &str, cuts: usize) -> (Seen, bool) {
        let (mut scanner, mut seen) = (Scanner::default(), Seen::default());
        text.as_bytes().chunks(cuts).for_each(|c| scanner.feed(c, &mut seen));
        (seen, scanner.at_boundary())
    }

    #[test]
    fn every_line_end_and_every_chunk_size_reads_the_same() {
        let text = ": hello\n\nevent: a\ndata: {\"é\":1}\n\nevent: dull\ndata: x\n\ndata:no name\ndata: two\n\ndata: d\nevent: late\nid: 7\nretryverylong: 3\n\n";
        let expected = [(Some("a"), "{\"é\":1}"), (None, "no name\ntwo"), (Some("late"), "d")];
        for end in ["\n", "\r\n", "\r"] {
            let text = text.replace('\n', end);
            for size in 1..=text.len() {
                let (seen, boundary) = scan(&text, size);
                let got: Vec<_> = seen.0.iter().map(|(n, d)| (n.as_deref(), d.as_str())).collect();
                assert_eq!(got, expected, "end {end:?}, size {size}");
                assert!(boundary);
            }
        }
    }

    #[test]
    fn a_boundary_is_only_between_events() {
        let text = "event: a\ndata: 1\n\n";
        for cut in 1..text.len() {
            let (mut scanner, mut seen) = (Scanner::default(), Seen::default());
            scanner.feed(&text.as_bytes()[..cut], &mut seen);
            assert!(!scanner.at_boundary(), "after {cut} bytes");
        }
    }

    #[test]
    fn an_event_without_end_does_not_fill_the_memory() {
        let (mut scanner, mut seen) = (Scanner::default(), Seen::default());
        scanner.feed(b"data: ", &mut seen);
        for _ in 0..64 {
            scanner.feed(&[b'x'; 65_536], &mut seen);
        }
        assert!(scanner.data.capacity() <= 2 * LARGEST_EVENT);
        scanner.feed(b"\n\ndata: next\n\n", &mut seen);
        assert_eq!(seen.0, [(None, "next".to_owned())]);
    }
}
