//! Logs: JSON or pretty, to standard output, by a thread of their own. A reader that stalls loses lines rather
//! than stalling the relay.

use crate::settings::{Log, LogFormat};
use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::os::fd::AsFd;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// Lines that wait at the most.
const BACKLOG: usize = 16_384;

/// Bytes that leave by one write at the most.
const BUFFER: usize = 64 << 10;

/// Sets logging up for the process. Lines are flushed when the guard is dropped.
///
/// # Errors
/// When `log.level` is no filter, or logging was set up before.
pub fn init(log: &Log) -> Result<WorkerGuard, String> {
    // The servers' own start and stop lines say nothing that ours do not; `log.level` may ask for them back.
    let filter =
        EnvFilter::try_new(format!("actix_server=warn,{}", log.level)).map_err(|e| format!("log.level: {e}"))?;
    // The writing thread flushes when it has caught up: under load many lines leave by one write.
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| format!("standard output: {e}"))?;
    let buffered = BufWriter::with_capacity(BUFFER, File::from(stdout));
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(BACKLOG).finish(buffered);
    let builder = SubscriberBuilder::default().with_env_filter(filter).with_writer(writer);
    let terminal = std::io::stdout().is_terminal();
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !terminal,
    };
    let done = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal).try_init()
    };
    done.map(|()| guard).map_err(|e| e.to_string())
}
