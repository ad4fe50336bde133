//! What every store must do with usage: the contracts that `store_contract` runs for each engine.

use super::store_contract::at;
use chrono::{NaiveDate, TimeDelta};
use claude_relay::domain::{Ending, Time, Usage};
use claude_relay::store::{Begun, Ended, Settlement, StoreError, Stores, UsageFilter, UsageRow};
use std::time::Instant;

pub fn begun(call: &str, key: &str, model: &str, at: Time) -> Begun {
    let text = str::to_owned;
    Begun { call: text(call), key: text(key), account: text("acc"), model: text(model), endpoint: text("messages"), at }
}

pub fn ended(call: &str, ending: Ending, output_tokens: u64) -> Ended {
    let usage = Usage { input_tokens: 2, output_tokens, cache_read_input_tokens: 5, ..Usage::default() };
    Ended { call: call.to_owned(), ending, status: Some(200), usage, first_byte_ms: Some(3), duration_ms: 4 }
}

pub fn piece(file: &str, from: u64, to: u64, begun: Vec<Begun>, ended: Vec<Ended>) -> Settlement {
    Settlement { file: file.to_owned(), from, to, begun, ended }
}

pub async fn sums(stores: &Stores) -> Vec<UsageRow> {
    stores.usage.sums(&UsageFilter::default()).await.unwrap()
}

pub async fn usage_is_settled_once_whatever_comes_again(stores: Stores) {
    let usage = &stores.usage;
    let first = piece(
        "b-0-0.jnl",
        0,
        100,
        vec![begun("b-0-1", "k", "m", at(0)), begun("b-0-2", "k", "m", at(0))],
        vec![ended("b-0-2", Ending::ClientGone, 20), ended("b-0-1", Ending::Complete, 10)],
    );
    for _ in 0..3 {
        usage.settle(first.clone()).await.unwrap();
    }
    let rows = sums(&stores).await;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].requests, rows[0].day.as_str(), rows[0].model.as_str()), (2, "2027-01-15", "m"));
    assert_eq!(
        rows[0].usage,
        Usage { input_tokens: 4, output_tokens: 30, cache_read_input_tokens: 10, ..Usage::default() }
    );
    let endings = [("client_gone".to_owned(), 1), ("complete".to_owned(), 1)];
    assert_eq!(rows[0].endings, endings.into());

    for (from, to) in [(101, 200), (99, 200), (0, 200)] {
        let gap = piece("b-0-0.jnl", from, to, vec![begun("b-0-3", "k", "m", at(0))], vec![]);
        let error = usage.settle(gap).await.unwrap_err();
        assert!(matches!(&error, StoreError::Engine(text) if text.contains("settled 100")), "{error}");
    }
    assert_eq!(usage.offsets().await.unwrap(), [("b-0-0.jnl".to_owned(), 100)]);

    // The file's offset is forgotten and the file comes back, as after a power loss: still nothing doubles.
    usage.forget("b-0-0.jnl").await.unwrap();
    assert!(usage.offsets().await.unwrap().is_empty());
    usage.settle(first).await.unwrap();
    let only_begun = piece("b-0-0.jnl", 100, 150, vec![begun("b-0-1", "k", "m", at(0))], vec![]);
    usage.settle(only_begun).await.unwrap();
    assert_eq!(usage.close_crashed("b").await.unwrap(), 0);
    assert_eq!(sums(&stores).await, rows);
}

pub async fn calls_stay_open_across_pieces_and_crashed_ones_become_rows(stores: Stores) {
    let usage = &stores.usage;
    // Ends on the next day; the row belongs to the day it began on.
    let late = NaiveDate::from_ymd_opt(2027, 3, 1).unwrap().and_hms_opt(23, 59, 59).unwrap().and_utc();
    let open = vec![
        begun("b-0-1", "k", "m", late),
        begun("b-0-2", "k", "m", late),
        begun("b-1-1", "k", "m", late),
        begun("bb-0-1", "k", "m", late + TimeDelta::seconds(2)),
    ];
    usage.settle(piece("b-0-0.jnl", 0, 10, open, vec![])).await.unwrap();
    assert_eq!(sums(&stores).await, []);
    let ending = vec![ended("b-0-1", Ending::Complete, 1), ended("unknown-0-0", Ending::Complete, 1)];
    usage.settle(piece("b-0-1.jnl", 0, 10, vec![], ending)).await.unwrap();
    assert_eq!(sums(&stores).await[0].requests, 1);

    assert_eq!(usage.close_crashed("b").await.unwrap(), 2);
    assert_eq!(usage.close_crashed("b").await.unwrap(), 0);
    // An ending that comes too late changes nothing.
    usage.settle(piece("b-0-1.jnl", 10, 20, vec![], vec![ended("b-0-2", Ending::Complete, 1)])).await.unwrap();
    let rows = sums(&stores).await;
    assert_eq!((rows.len(), rows[0].requests, rows[0].day.as_str()), (1, 3, "2027-03-01"));
    assert_eq!(rows[0].endings, [("complete".to_owned(), 1), ("relay_crashed".to_owned(), 2)].into());
    assert_eq!(rows[0].usage.output_tokens, 1);
    assert_eq!(usage.close_crashed("bb").await.unwrap(), 1);
    assert_eq!(sums(&stores).await[1].day, "2027-03-02");
}

pub async fn sums_are_filtered(stores: Stores) {
    let (mut opens, mut ends) = (Vec::new(), Vec::new());
    for (n, (key, model, day)) in
        [("k1", "m1", 0), ("k1", "m2", 1), ("k2", "m1", 1), ("k2", "m1", 2), ("k2", "", 2)].into_iter().enumerate()
    {
        let call = format!("b-0-{n}");
        opens.push(begun(&call, key, model, at(0) + TimeDelta::days(day)));
        ends.push(ended(&call, Ending::Complete, 1));
    }
    stores.usage.settle(piece("b-0-0.jnl", 0, 1, opens, ends)).await.unwrap();
    let day = |day| NaiveDate::from_ymd_opt(2027, 1, day);
    let all = UsageFilter::default;
    for (filter, expected) in [
        (all(), 5),
        (UsageFilter { key: Some("k1".into()), ..all() }, 2),
        (UsageFilter { model: Some("m1".into()), ..all() }, 3),
        (UsageFilter { model: Some(String::new()), ..all() }, 1),
        (UsageFilter { account: Some("acc".into()), ..all() }, 5),
        (UsageFilter { account: Some("other".into()), ..all() }, 0),
        (UsageFilter { since: day(16), ..all() }, 4),
        (UsageFilter { until: day(16), ..all() }, 3),
        (UsageFilter { key: Some("k2".into()), since: day(16), until: day(16), ..all() }, 1),
        (UsageFilter { key: Some("' OR 1=1 --".into()), ..all() }, 0),
    ] {
        assert_eq!(stores.usage.sums(&filter).await.unwrap().len(), expected, "{filter:?}");
    }
}

pub async fn absurd_token_counts_do_not_stop_the_ledger(stores: Stores) {
    for n in 0..20 {
        let call = format!("b-0-{n}");
        let (open, end) = (begun(&call, "k", "m", at(0)), ended(&call, Ending::Complete, u64::MAX));
        stores.usage.settle(piece("b-0-0.jnl", n, n + 1, vec![open], vec![end])).await.unwrap();
    }
    assert_eq!(sums(&stores).await[0].requests, 20);
}

pub async fn settlements_of_several_files_at_once_all_count(stores: Stores) {
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let usage = stores.usage.clone();
            // Of two workers only, so that they meet in one place of the store.
            let worker = n % 2;
            let call = format!("b-{worker}-{n}");
            let name = format!("b-{worker}-{n}.jnl");
            let (open, end) = (begun(&call, "k", "m", at(0)), ended(&call, Ending::Complete, 1));
            actix_rt::spawn(async move { usage.settle(piece(&name, 0, 9, vec![open], vec![end])).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let rows = sums(&stores).await;
    assert_eq!((rows.len(), rows[0].requests, rows[0].usage.output_tokens), (1, 40, 40));
    assert_eq!(stores.usage.offsets().await.unwrap().len(), 40);
}

pub async fn a_hundred_thousand_rows(stores: Stores) {
    let began = Instant::now();
    let mut open: Vec<String> = Vec::new();
    for nth in 0..50_u64 {
        let names: Vec<_> = (0..2_000).map(|n| format!("0123456789abcdef-0-{}", nth * 2_000 + n)).collect();
        let begins = names.iter().enumerate().map(|(n, call)| {
            begun(call, &format!("k{}", n % 20), &format!("m{}", n % 3), at(i64::try_from(nth).unwrap() * 3_600))
        });
        // Half of the calls end in the next piece.
        let mut ending = std::mem::take(&mut open);
        for (n, call) in names.iter().enumerate() {
            if n % 2 == 0 { ending.push(call.clone()) } else { open.push(call.clone()) }
        }
        let ends = ending.iter().map(|call| ended(call, Ending::Complete, 3)).collect();
        stores.usage.settle(piece("f-0-0.jnl", nth, nth + 1, begins.collect(), ends)).await.unwrap();
    }
    let ends = open.iter().map(|call| ended(call, Ending::Complete, 3)).collect();
    stores.usage.settle(piece("f-0-0.jnl", 50, 51, vec![], ends)).await.unwrap();
    println!("100,000 rows, half of them across two pieces: {:.0}/s", 100_000.0 / began.elapsed().as_secs_f64());
    let rows = sums(&stores).await;
    assert_eq!(rows.iter().map(|r| r.requests).sum::<u64>(), 100_000);
    assert_eq!(rows.iter().map(|r| r.usage.output_tokens).sum::<u64>(), 300_000);
    assert_eq!(rows.iter().map(|r| r.usage.input_tokens).sum::<u64>(), 200_000);
    assert_eq!(rows.iter().map(|r| r.endings["complete"]).sum::<u64>(), 100_000);
    assert_eq!(rows.len(), 20 * 3 * 3, "20 keys, 3 models, 3 days");
}
