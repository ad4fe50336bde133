//! `--watch`: the same question again and again.
//!
//! Called by `status`. A relay that goes away is waited for, but the first question must be answered: where nobody
//! ever was, the address is wrong more likely than not, and the exit code says so.

use super::Failure;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Clears the screen and goes to its first cell; what was scrolled out of sight stays.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// How to draw, and how often.
pub struct Watch {
    every: Duration,
    json: bool,
    /// Each drawing takes the place of the one before.
    redraw: bool,
}

impl Watch {
    /// Every `every`, to standard output.
    pub fn new(every: Duration, json: bool) -> Self {
        Self { every, json, redraw: !json && std::io::stdout().is_terminal() }
    }

    /// Asks and draws until it cannot go on; returns why.
    pub fn run(&self, ask: impl FnMut() -> Result<Value, Failure>, people: impl Fn(&Value) -> String) -> Failure {
        let pause = || std::thread::sleep(self.every);
        self.loop_over(ask, people, pause, &mut std::io::stdout().lock(), &mut std::io::stderr())
    }

    fn loop_over(
        &self,
        mut ask: impl FnMut() -> Result<Value, Failure>,
        people: impl Fn(&Value) -> String,
        mut pause: impl FnMut(),
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> Failure {
        let (mut first, mut complaint) = (true, None);
        loop {
            match ask() {
                Ok(answer) => {
                    if let Err(error) = out.write_all(self.block(&answer, first, &people).as_bytes()) {
                        return error.into();
                    }
                    if let Err(error) = out.flush() {
                        return error.into();
                    }
                    complaint = None;
                }
                Err(failure) if first => return failure,
                Err(failure) => {
                    let text = format!("error: {failure}; trying again every {}s", self.every.as_secs());
                    if self.redraw {
                        let _ = out.write_all(CLEAR.as_bytes()).and_then(|()| out.flush());
                    }
                    // In a log once is enough; from a screen it was just cleared.
                    if self.redraw || complaint.as_ref() != Some(&text) {
                        let _ = writeln!(err, "{text}");
                    }
                    complaint = Some(text);
                }
            }
            first = false;
            pause();
        }
    }

    /// One drawing, with what parts it from the one before.
    fn block(&self, answer: &Value, first: bool, people: impl Fn(&Value) -> String) -> String {
        if self.json {
            return format!("{answer}\n");
        }
        let before = match (self.redraw, first) {
            (true, _) => CLEAR,
            (false, true) => "",
            (false, false) => "\n",
        };
        format!("{before}{}\n", people(answer).trim_end_matches('\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io;

    /// Takes so many writes, then the reader is gone.
    struct Reader(String, usize);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = self.1.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            self.0 += &String::from_utf8_lossy(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a reader of `writes` writes and the error output got from a relay that is away in rounds 2 and 3.
    fn watch(json: bool, redraw: bool, writes: usize) -> (String, String, u32) {
        let (mut out, mut err, mut round, mut pauses) = (Reader(String::new(), writes), Vec::new(), 0, 0);
        let ask = || {
            round += 1;
            if matches!(round, 2 | 3) { Err(Failure::NotReachable("gone".into())) } else { Ok(json!({"n": round})) }
        };
        let watch = Watch { every: Duration::from_secs(2), json, redraw };
        let people = |answer: &Value| format!("round\n{}\n", answer["n"]);
        let end = watch.loop_over(ask, people, || pauses += 1, &mut out, &mut err);
        assert!(matches!(end, Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe));
        (out.0, String::from_utf8(err).unwrap(), pauses)
    }

    #[test]
    fn blocks_stand_apart_and_an_outage_is_told_once() {
        let (out, err, pauses) = watch(false, false, 3);
        assert_eq!(out, "round\n1\n\nround\n4\n\nround\n5\n");
        assert_eq!((err.as_str(), pauses), ("error: gone; trying again every 2s\n", 5));
    }

    #[test]
    fn json_is_one_document_a_line_and_a_screen_is_cleared_each_time() {
        assert_eq!(watch(true, false, 2).0, "{\"n\":1}\n{\"n\":4}\n");
        let (out, err, _) = watch(false, true, 4);
        assert_eq!(out, format!("{CLEAR}round\n1\n{CLEAR}{CLEAR}{CLEAR}round\n4\n"));
        assert_eq!(err.lines().count(), 2);
    }

    #[test]
    fn a_relay_that_never_answered_is_not_waited_for() {
        let watch = Watch { every: Duration::from_secs(2), json: false, redraw: false };
        let ask = || Err(Failure::NotReachable("nobody".into()));
        let end = watch.loop_over(ask, |_| String::new(), || panic!("waits"), &mut Vec::new(), &mut Vec::new());
        assert_eq!(end.code(), 3);
    }
}
