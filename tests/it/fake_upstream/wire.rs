//! One connection of the fake upstream: writes the scripted answers, watches the peer while it does
//! so, and ends the connection as the script says.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::{sleep, timeout};

use super::calls::{Call, Recorded, Shared};
use super::inlet::Inlet;
use super::script::{Cut, Framing, Reply, Stop};

/// How long an early answer's connection still swallows the request body: a close over unread
/// bytes is a reset, which may destroy the answer before the peer has read it.
const LINGER: Duration = Duration::from_secs(2);

/// Lets a reset follow the bytes sent before it: it discards what the peer's kernel has not taken.
const BEFORE_RESET: Duration = Duration::from_millis(20);

/// What becomes of a connection after an answer, or how it ends before one.
enum Sent {
    Whole,
    Cut(Cut),
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(mut socket: TcpStream, connection: u64, shared: Arc<Shared>) {
    let _ = socket.set_nodelay(true);
    let (read, mut write) = socket.split();
    let mut inlet = Inlet::new(read, shared.received());
    while let Ok(head) = inlet.head(connection).await {
        if !one_call(head, &mut inlet, &mut write, &shared).await {
            return;
        }
    }
}

/// Reads the rest of one request and answers it; true where the connection lives on.
async fn one_call(
    mut request: Recorded,
    inlet: &mut Inlet<'_>,
    write: &mut WriteHalf<'_>,
    shared: &Arc<Shared>,
) -> bool {
    let mut call = shared.opened(&request);
    let early = shared.early_reply(&request);
    let read_body = early.is_none();
    let reply = match early {
        Some(reply) => {
            shared.record(&request);
            reply
        }
        None => {
            let wants_go = request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
            if wants_go && write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
                return false;
            }
            match inlet.body(&request).await {
                Ok(body) => request.body = body,
                Err(_) => return false,
            }
            shared.record(&request);
            shared.reply_to(&request)
        }
    };

    let sent = {
        let mut answering = pin!(answer(write, &reply, &request, &mut call));
        let mut watching = pin!(inlet.peer_gone(read_body));
        poll_fn(|cx| match answering.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => watching.as_mut().poll(cx).map(|()| Err(io::ErrorKind::ConnectionAborted.into())),
        })
        .await
    };
    let Ok(sent) = sent else { return false };
    let asked_to_close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let last_here = asked_to_close || reply.close || reply.early || reply.framing == Framing::UntilClose;
    match sent {
        Sent::Whole if !last_here => return true,
        Sent::Whole => {}
        Sent::Cut(Cut::Fin) => call.cut_short(),
        Sent::Cut(Cut::Rst) => {
            call.cut_short();
            sleep(BEFORE_RESET).await;
            let _ = write.as_ref().set_zero_linger();
            return false;
        }
    }
    let _ = write.shutdown().await;
    if !read_body {
        let _ = timeout(LINGER, inlet.peer_gone(true)).await;
    }
    false
}

/// Writes one answer; stays pending for ever where the script says so.
async fn answer(write: &mut WriteHalf<'_>, reply: &Reply, request: &Recorded, call: &mut Call) -> io::Result<Sent> {
    if !reply.delay.is_zero() {
        sleep(reply.delay).await;
    }
    match reply.stop {
        Some(Stop::Silent) => std::future::pending().await,
        Some(Stop::Hangup(how)) => return Ok(Sent::Cut(how)),
        _ => {}
    }
    let mut pieces = reply.pieces();
    // Each write is held back until the next one is known, since the last is made differently.
    let mut unsent = head(reply, pieces.iter().map(Vec::len).sum()).into_bytes();
    let bodiless = request.method == "HEAD" || matches!(reply.status, 204 | 304);
    if bodiless {
        pieces.clear();
    }

    let chunked = reply.framing == Framing::Chunked;
    let mut left = match reply.stop {
        Some(Stop::Hang(bytes) | Stop::Cut(bytes, _)) => bytes,
        _ => usize::MAX,
    };
    for (index, piece) in pieces.iter().enumerate() {
        if left == 0 {
            break;
        }
        write.write_all(&unsent).await?;
        if index > 0 && !reply.pause.is_zero() {
            sleep(reply.pause).await;
        }
        let taken = piece.len().min(left);
        left -= taken;
        unsent.clear();
        if chunked {
            unsent.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        unsent.extend_from_slice(&piece[..taken]);
        if chunked && taken == piece.len() {
            unsent.extend_from_slice(b"\r\n");
        }
    }
    if let Some(stop) = reply.stop {
        write.write_all(&unsent).await?;
        return match stop {
            Stop::Cut(_, how) => Ok(Sent::Cut(how)),
            _ => std::future::pending().await,
        };
    }
    if chunked && !bodiless {
        write.write_all(&unsent).await?;
        unsent = b"0\r\n\r\n".to_vec();
    }
    let mut last = &unsent[..];
    while !last.is_empty() {
        write.writable().await?;
        call.complete_by(request, || {
            match write.try_write(last) {
                Ok(count) => last = &last[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            Ok(last.is_empty())
        })?;
    }
    Ok(Sent::Whole)
}

fn head(reply: &Reply, length: usize) -> String {
    if reply.framing == Framing::Raw {
        return String::new();
    }
    let reason = match reply.status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        529 => "Overloaded",
        _ => "Scripted",
    };
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.framing {
        _ if matches!(reply.status, 204 | 304) => {}
        Framing::ContentLength => head.push_str(&format!("content-length: {length}\r\n")),
        Framing::Chunked => head.push_str("transfer-encoding: chunked\r\n"),
        Framing::UntilClose | Framing::Raw => {}
    }
    head + "\r\n"
}
