//! The heads of requests and answers on an upstream's connection, where awc's view of them is not ours.
//!
//! The heads of answers are seen before awc sees them: interim ones (1xx) are taken out, since awc takes each for the
//! final one, and an answer behind which a connection cannot be used again is told. awc gives a connection back to its pool as soon as it has read a head that has no body by its framing. What the
//! upstream still sends then would be read as the answer to the next caller, who may be another client.

use memchr::memmem;
use std::ops::Range;

/// No head is larger; awc refuses larger ones.
const LARGEST: usize = 128 * 1024;

/// Bytes of an answer up to the end of its final head.
#[derive(Debug, Default)]
pub struct Heads {
    held: Vec<u8>,
}

/// What is known of an answer whose final head is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Final {
    /// The final head and what came with it: for awc to read.
    pub bytes: Vec<u8>,
    /// Nothing more may be read from the connection once these bytes are: no body is framed.
    pub last: bool,
}

impl Heads {
    /// The usual case, in place: `Some` if the first bytes of an answer hold its whole head and it is final; the
    /// value says whether nothing more may be read, as in [`Final::last`].
    pub fn at_once(bytes: &[u8]) -> Option<bool> {
        let head = &bytes[..end_of_head(bytes)?];
        (!is_interim(head)).then(|| !has_framed_body(head))
    }

    /// Nothing was taken in yet.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes the next bytes in; `Some` once the final head is among them.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Final> {
        self.held.extend_from_slice(bytes);
        loop {
            let Some(end) = end_of_head(&self.held) else {
                // Too large, or not HTTP at all: for awc to refuse.
                let hopeless = self.held.len() > LARGEST || !could_be_http(&self.held);
                return hopeless.then(|| Final { bytes: std::mem::take(&mut self.held), last: true });
            };
            let head = &self.held[..end];
            // 101 switches protocols, which nobody asked for: it is final, and nothing follows that we could read.
            if is_interim(head) {
                self.held.drain(..end);
                continue;
            }
            let last = !has_framed_body(head);
            return Some(Final { bytes: std::mem::take(&mut self.held), last });
        }
    }
}

/// The `date` line that awc writes into every request's head: it is nobody's own, neither the client's nor the
/// operator's, and is left out.
pub fn date_line(request: &[u8]) -> Option<Range<usize>> {
    let end = memmem::find(request, b"\r\n\r\n")? + 2;
    let start = memmem::find(&request[..end], b"\r\ndate: ")? + 2;
    let length = memmem::find(&request[start..end], b"\r\n")? + 2;
    Some(start..start + length)
}

/// A head ends with a blank line; awc's parser takes a bare LF for a line's end too.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let strict = memmem::find(bytes, b"\n\r\n").map(|at| at + 3);
    let loose = memmem::find(bytes, b"\n\n").map(|at| at + 2);
    strict.into_iter().chain(loose).min()
}

fn could_be_http(start: &[u8]) -> bool {
    let n = start.len().min(5);
    start[..n] == b"HTTP/"[..n]
}

fn status(head: &[u8]) -> &[u8] {
    head.split(|b| *b == b' ').find(|part| !part.is_empty() && !part.starts_with(b"HTTP/")).unwrap_or_default()
}

fn is_interim(head: &[u8]) -> bool {
    let status = status(head);
    status.len() >= 3 && status[0] == b'1' && !status.starts_with(b"101")
}

fn has_framed_body(head: &[u8]) -> bool {
    let status = status(head);
    if status.starts_with(b"1") || status.starts_with(b"204") || status.starts_with(b"304") {
        return false;
    }
    head.split(|b| *b == b'\n').any(|line| {
        let mut parts = line.splitn(2, |b| *b == b':').map(<[u8]>::trim_ascii);
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let chunked = || value.to_ascii_lowercase().ends_with(b"chunked");
        name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding") && chunked()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, size: usize) -> Option<(String, bool)> {
        let mut heads = Heads::default();
        for (i, part) in text.as_bytes().chunks(size).enumerate() {
            if let Some(done) = heads.take(part) {
                let rest = &text.as_bytes()[((i + 1) * size).min(text.len())..];
                let all = [done.bytes, rest.to_vec()].concat();
                return Some((String::from_utf8(all).unwrap(), done.last));
            }
        }
        None
    }

    #[test]
    fn interim_answers_are_taken_out_at_every_chunk_size() {
        let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 0\r\n\r\n";
        let last = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let both = format!("{early}{last}");
        for size in 1..both.len() {
            assert_eq!(run(&both, size), Some((last.to_owned(), false)), "{size}");
        }
        assert_eq!(run(early, 7), None);
    }

    #[test]
    fn the_date_line_is_found_in_the_head_alone() {
        let head = "POST / HTTP/1.1\r\nhost: h\r\ndate: today\r\nx: 1\r\n\r\nbody\r\ndate: x\r\n\r\n";
        assert_eq!(&head[date_line(head.as_bytes()).unwrap()], "date: today\r\n");
        assert_eq!(date_line(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n\r\ndate: x\r\n\r\n"), None);
    }

    #[test]
    fn an_answer_without_a_framed_body_is_the_connections_last() {
        for (head, last) in [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\ncontent-type: a\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 304\r\n\r\n", true),
            ("HTTP/1.1 101 Switching Protocols\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\ncontent-length: 3\n\nabc", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n", true),
            ("SSH-2.0-x", true),
        ] {
            assert_eq!(run(head, 1000).map(|(_, l)| l), Some(last), "{head}");
        }
    }
}
