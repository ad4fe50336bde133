//! The command line: what can be typed, what it prints, and the exit code.
//!
//! Called by `main` alone. Without a command it serves. Standard output carries results only (with `--json`
//! exactly one JSON document), everything else goes to standard error; a reader that went away is no failure.

mod account;
mod client;
mod explain;
mod input;
mod key;
mod migrate;
mod operate;
mod pool;
mod serve;
mod status;
mod table;
mod usage;
mod watch;

use crate::settings::ServeFlags;
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;

/// A relay between many clients and many upstream AI accounts.
///
/// Exit codes: 0 done, 1 the relay said no or failed, 2 wrong usage or settings, 3 no relay was reached.
#[derive(Debug, Parser)]
#[command(name = "claude-relay", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay (also what happens without a command)
    Serve(ServeFlags),
    /// Upstream accounts of a running relay
    Account(account::AccountArgs),
    /// Keys that clients hold
    Key(key::KeyArgs),
    /// What a running relay can do right now
    Status(status::StatusArgs),
    /// Who would take a call right now, and why no other
    Explain(explain::ExplainArgs),
    /// What was used, by key, account, model and day
    Usage(usage::UsageArgs),
    /// The schema in Redis, or a move of the store from one engine to the other
    Migrate(migrate::MigrateArgs),
}

/// Why a command failed; the kind decides the exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The relay said no, or failed.
    #[error("{0}")]
    Refused(String),
    /// What was typed, a file it names, or a setting is wrong.
    #[error("{0}")]
    Usage(String),
    /// No relay answers.
    #[error("{0}")]
    NotReachable(String),
    /// The result could not be written.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
    /// The result says so itself and is printed already.
    #[error("")]
    Told,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Output(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::NotReachable(_) => 3,
        }
    }
}

/// Runs what the process's arguments say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version arrive here too, with code 0. Nothing is left to do if they cannot be printed.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(flags) => serve::run(&flags),
        Command::Account(args) => account::run(args),
        Command::Key(args) => key::run(args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Migrate(args) => migrate::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `claude-relay usage | head` got all that it wanted.
        Err(Failure::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Told) {
                let _ = writeln!(std::io::stderr(), "error: {failure}");
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Writes a result, with one line end.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.trim_end_matches('\n').as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Writes the relay's answer as it is, or as `people` show it.
fn show(json: bool, answer: &Value, people: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    print(&if json { format!("{answer:#}") } else { people(answer) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_serves_with_the_same_flags() {
        let bare = parse("claude-relay --no-demo --listen localhost:0").unwrap();
        assert!(bare.command.is_none() && bare.serve.no_demo);
        let named = parse("claude-relay serve --check --workers 3").unwrap();
        assert!(matches!(named.command, Some(Command::Serve(f)) if f.check && f.workers == Some(3)));
    }

    #[test]
    fn client_options_stand_before_or_after_the_command() {
        for line in
            ["claude-relay account --json list", "claude-relay account list --json", "claude-relay status --json"]
        {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert!(parse("claude-relay account list --data-dir a --admin-url http://b").is_err());
    }

    #[test]
    fn the_commands_of_an_operator_are_understood() {
        for line in [
            "claude-relay explain --model m",
            "claude-relay explain --model m --key alice --session s --json",
            "claude-relay account drain a",
            "claude-relay account enable a",
            "claude-relay account disable a --json",
            "claude-relay account reset a",
            "claude-relay account probe a",
            "claude-relay account events a",
            "claude-relay account set a --status draining --weight 50 --reserve 0 --probe count_tokens",
            "claude-relay account set a --reserve 99 --probe none",
            "claude-relay key create --name n --account a --account b --group g --group h",
            "claude-relay key set k --group g --concurrency 3",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_watch_has_a_pace_of_its_own() {
        for (line, watch) in [
            ("claude-relay status", None),
            ("claude-relay status --watch", Some(2)),
            ("claude-relay status --watch --json", Some(2)),
            ("claude-relay status --watch 60 --json", Some(60)),
            ("claude-relay status --watch=3600", Some(3_600)),
        ] {
            let command = parse(line).unwrap().command;
            assert!(matches!(command, Some(Command::Status(args)) if args.watch == watch), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "claude-relay account",
            "claude-relay account add",
            "claude-relay account add --file a.json --session-token x",
            "claude-relay account set a",
            "claude-relay account set a --status off",
            "claude-relay account set a --schedulable maybe",
            "claude-relay account set a --concurrency -1",
            "claude-relay account show a/b",
            "claude-relay key create",
            "claude-relay key create --name n --expires tomorrow",
            "claude-relay key create --name n --concurrency 0",
            "claude-relay usage --since yesterday",
            "claude-relay explain",
            "claude-relay explain --key k",
            "claude-relay account drain",
            "claude-relay account events a/b",
            "claude-relay account set a --weight 0",
            "claude-relay account set a --reserve 100",
            "claude-relay account set a --reserve -1",
            "claude-relay account set a --probe ping",
            "claude-relay key set",
            "claude-relay status --watch 0",
            "claude-relay status --watch 3601",
            "claude-relay status --watch soon",
            "claude-relay serve --workers two",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
