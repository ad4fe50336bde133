//! An account's limit is never exceeded, as the upstream itself counts by its sockets, and every slot comes back.

use crate::fake_upstream::{Chunks, FakeUpstream, Reply, Usage};
use crate::relay_app::{TestRelay, stream};
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;

const USAGE: Usage = Usage { input: 1, output: 2, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

/// A small generator of its own, so that a failing run can be repeated.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

#[actix_rt::test]
async fn limits_of_1_5_and_200_hold_under_500_parallel_calls_with_random_disconnects() {
    for limit in [1_u32, 5, 200] {
        let upstream = FakeUpstream::start();
        let relay = TestRelay::start_with(|s| {
            s.upstream.abort_linger = Duration::from_millis(20);
            s.queue.timeout = Duration::ZERO;
        })
        .await;
        relay.add_account("a", &upstream, json!({"concurrencyLimit": limit})).await;
        let key = relay.add_key(json!({})).await;
        let slow =
            Reply::stream(&["one", "two", "three"], USAGE).chunks(Chunks::Events).pause(Duration::from_millis(3));
        upstream.always(slow);
        let mut dice = random(u64::from(limit));
        let calls = (0..500).map(|_| {
            let leave_after = (dice(3) == 0).then(|| dice(5));
            let (relay, key) = (&relay, &key);
            async move {
                let mut refused = 0;
                let mut streaming = loop {
                    let streaming = relay.open(stream(key)).await;
                    if streaming.status == 200 {
                        break streaming;
                    }
                    assert_eq!((streaming.status, streaming.header("x-relay-error")), (529, Some("at_capacity")));
                    refused += 1;
                    if refused == 10 {
                        return (0, refused);
                    }
                };
                for _ in 0..leave_after.unwrap_or(u64::MAX) {
                    match streaming.next().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => panic!("{error}"),
                        None => return (1, refused),
                    }
                }
                streaming.leave();
                (0, refused)
            }
        });
        let ends = join_all(calls).await;
        let (whole, refused) = ends.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        let peak = upstream.peak("token-of-a");
        assert!(peak <= limit as usize, "{peak} calls at once over a limit of {limit}");
        assert!(whole > 0 && (limit == 200 || refused > 0), "{whole} whole, {refused} refused");
        upstream.wait_until_async(|u| u.open_total() == 0).await;
        relay.idle().await;
        let rows: u64 = relay.usage().await.iter().map(|r| r["requests"].as_u64().unwrap()).sum();
        assert_eq!(rows, upstream.requests().len() as u64, "one row for each call that reached the upstream");
    }
}

#[actix_rt::test]
async fn equal_accounts_share_evenly_also_under_parallel_arrival() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    // Nobody is answered before all have come.
    upstream.always(Reply::message("hi", USAGE).delay(Duration::from_millis(500)));
    for i in 0..4 {
        relay.add_account(&format!("a{i}"), &upstream, json!({"concurrencyLimit": 100})).await;
    }
    let key = relay.add_key(json!({})).await;
    let calls = (0..200).map(|_| relay.send(stream(&key)));
    assert!(join_all(calls).await.iter().all(|a| a.status == 200));
    for i in 0..4 {
        let token = format!("token-of-a{i}");
        let n = upstream.requests().iter().filter(|r| r.credential.as_deref() == Some(&token)).count();
        assert!((48..=52).contains(&n), "account {i} had {n} of 200 calls");
    }
}
