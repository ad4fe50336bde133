//! Reads a request body once, whole, within bounds of size, time and memory held over all requests.

use crate::domain::Refusal;
use crate::settings::Settings;
use actix_web::HttpRequest;
use actix_web::error::PayloadError;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::Payload;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of the semaphore stands for: its count must fit `u32`.
pub const UNIT: usize = 1024;

/// The share of a body of unknown length that is taken at a time.
const STEP: usize = 64 * 1024;

/// A body, and the hold on the memory it takes.
pub struct Held {
    /// The bytes as they came.
    pub bytes: Bytes,
    hold: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes the hold apart from the bytes, to be dropped when the request is out.
    pub fn split(self) -> (Bytes, Option<OwnedSemaphorePermit>) {
        (self.bytes, self.hold)
    }
}

/// Reads the body of `request`.
///
/// # Errors
/// Too large (without reading the rest), too slow, broken off, or no memory left to hold it in.
pub async fn read(
    request: &HttpRequest,
    payload: Payload,
    settings: &Settings,
    memory: &Arc<Semaphore>,
) -> Result<Held, Refusal> {
    let limit = settings.limits.max_body_bytes;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(Refusal::BodyTooLarge { limit });
    }
    let deadline = settings.limits.upload_timeout;
    match tokio::time::timeout(deadline, collect(payload, announced, limit, memory)).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::UploadTimeout { seconds: deadline.as_secs() }),
    }
}

async fn collect(
    mut payload: Payload,
    announced: Option<usize>,
    limit: usize,
    memory: &Arc<Semaphore>,
) -> Result<Held, Refusal> {
    let mut hold: Option<OwnedSemaphorePermit> = None;
    let mut held = 0;
    let mut take = |bytes: usize| -> Result<(), Refusal> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let more = memory.clone().try_acquire_many_owned(units).map_err(|_| Refusal::BodyMemory)?;
        match &mut hold {
            Some(hold) => hold.merge(more),
            None => hold = Some(more),
        }
        Ok(())
    };
    // Memory is taken as bytes come: an announcement costs a client nothing, and must cost nobody else either.
    let mut first: Option<Bytes> = None;
    let mut buffer = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| broken(&error))?;
        let size = buffer.len() + first.as_ref().map_or(0, Bytes::len) + chunk.len();
        if size > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
        if size > held {
            let expected = announced.map_or(STEP, |n| n.saturating_sub(held));
            let more = (size - held).max(STEP.min(expected)).min(limit - held);
            take(more)?;
            held += more;
        }
        // A small body comes in one piece and is never copied.
        match first.take() {
            None if buffer.is_empty() => first = Some(chunk),
            None => buffer.extend_from_slice(&chunk),
            Some(start) => {
                buffer.reserve(announced.unwrap_or(size));
                buffer.extend_from_slice(&start);
                buffer.extend_from_slice(&chunk);
            }
        }
    }
    Ok(Held { bytes: first.unwrap_or_else(|| buffer.freeze()), hold })
}

fn broken(error: &PayloadError) -> Refusal {
    Refusal::UploadBroken(error.to_string())
}
