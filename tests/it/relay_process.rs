//! The real binary as a child process: what tests of signals, `kill -9`, the log and the CLI run.

use crate::relay_app::eventually;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// A relay in a process of its own.
pub struct RelayProcess {
    child: Child,
    output: Arc<Mutex<String>>,
    /// Where clients call.
    pub addr: SocketAddr,
}

/// The binary with a clean environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claude-relay"));
    let ours = std::env::vars().map(|(n, _)| n).filter(|n| n.starts_with("CLAUDE_RELAY_"));
    ours.for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// Runs the CLI against the relay of `data`.
pub fn cli(data: &Path, args: &[&str], stdin: &str) -> Output {
    let mut child = command()
        .args(args)
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The one JSON document on standard output of a CLI call that must succeed.
pub fn cli_json(data: &Path, args: &[&str], stdin: &str) -> serde_json::Value {
    let output = cli(data, &[args, &["--json"]].concat(), stdin);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

impl RelayProcess {
    /// Starts it on free ports over `data`, with further arguments, and waits until it listens.
    pub async fn start(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        command.args(args).envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let output = output.clone();
            std::thread::spawn(move || {
                for line in std::io::BufRead::lines(std::io::BufReader::new(pipe)).map_while(Result::ok) {
                    let mut all = output.lock().unwrap();
                    all.push_str(&line);
                    all.push('\n');
                }
            });
        }
        let listens = |all: &str| {
            let (_, rest) = all.split_once("listens on http://")?;
            all.contains("admin API on").then(|| rest.lines().next()?.parse().ok())?
        };
        let mut addr: Option<SocketAddr> = None;
        eventually("the relay listens", || {
            addr = listens(&output.lock().unwrap());
            let dead = child.try_wait().unwrap();
            assert!(dead.is_none(), "it ended: {}", output.lock().unwrap());
            addr.is_some()
        })
        .await;
        Self { child, output, addr: addr.unwrap() }
    }

    /// Everything it has printed, logs included.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end and gives the exit code; `None` after a signal that it did not handle.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the process has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
