//! `GET /admin/metrics`: the pool in the text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats),
//! by the same verdicts as `status`. Everything is read at the moment it is asked for, so that a call costs nothing more
//! for being counted; sums of usage are `/admin/usage`'s.

use super::status::Pool;
use super::{AdminError, State};
use crate::domain::window::Family;
use crate::http::probes;
use actix_web::HttpResponse;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// The content type of the format's version 0.0.4.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of gauges.
#[derive(Default)]
struct Page(String);

impl Page {
    /// One gauge with all its samples: labels and value of each.
    fn gauge<V: Display>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Vec<Label>, V)>) {
        let _ = write!(self.0, "# HELP claude_relay_{name} {help}\n# TYPE claude_relay_{name} gauge\n");
        for (labels, value) in samples {
            let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "claude_relay_{name}{labels} {value}");
        }
    }
}

type Label = (&'static str, String);

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub async fn metrics(state: State) -> Result<HttpResponse, AdminError> {
    let pool = Pool::survey(&state).await?;
    let (now, window) = (state.clock.now(), Pool::window(&state));
    let ready = probes::reasons(&state).await.is_empty();
    let (held, overview) = (state.actors.outstanding(), &pool.overview);
    let mut page = Page::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.gauge("info", "Which relay this is.", [(version, 1)]);
    page.gauge("ready", "1 if a call would be taken.", [(vec![], u8::from(ready))]);
    page.gauge("calls_open", "Calls that hold a slot of an account.", [(vec![], held.permits)]);
    page.gauge("calls_waiting", "Calls that wait for an account.", [(vec![], overview.waiting)]);
    page.gauge("sessions", "Sessions whose account is remembered.", [(vec![], overview.sessions)]);

    let account = |view: &crate::actors::account::AccountView| {
        let record = &view.standing.record;
        vec![("account", record.id.to_string()), ("platform", record.platform.name().to_owned())]
    };
    let all = || overview.accounts.iter();
    let verdicts: Vec<_> = all().map(|view| (account(view), view.verdict(overview.aside, now))).collect();
    let schedulable = verdicts.iter().map(|(labels, verdict)| (labels.clone(), u8::from(verdict.schedulable)));
    page.gauge("account_schedulable", "1 if the account may take a call of any model.", schedulable);
    let reasons = verdicts.iter().flat_map(|(labels, verdict)| {
        // Two windows may be used up, and one code stand twice; a series may not.
        let mut counts = BTreeMap::new();
        verdict.reasons.iter().for_each(|r| *counts.entry((r.code, r.blocks)).or_insert(0) += 1);
        counts.into_iter().map(|((code, blocks), count)| {
            let more = [("code", code.name().to_owned()), ("blocks", blocks.to_string())];
            (labels.iter().cloned().chain(more).collect(), count)
        })
    });
    page.gauge("account_reason", "Reasons of the account's verdict, by code.", reasons);
    let slots = |view: &crate::actors::account::AccountView| view.standing.slots.clone();
    page.gauge("account_slots_in_use", "Slots taken.", all().map(|v| (account(v), slots(v).in_use())));
    page.gauge("account_slots_limit", "Slots in all.", all().map(|v| (account(v), slots(v).limit())));
    page.gauge("account_waiting", "Waiting calls that it could take.", all().map(|v| (account(v), v.waiting)));
    let first_byte = all().filter_map(|v| Some((account(v), slots(v).vitals().first_byte()?.as_secs_f64())));
    page.gauge("account_first_byte_seconds", "Time to the first byte, smoothed.", first_byte);
    let calls = all().flat_map(|v| {
        let (slots, labels) = (slots(v), account(v));
        let with = |result: &str| labels.iter().cloned().chain([("result", result.to_owned())]).collect();
        let vitals = slots.vitals();
        [(with("success"), vitals.successes(now, window)), (with("fault"), vitals.faults(now, window))]
    });
    page.gauge("account_recent_calls", "Calls that ended within health.breaker_window, by result.", calls);
    let used = all().flat_map(|v| {
        v.standing.health.readings(now).map(|reading| {
            let family = reading.family.map_or("", Family::name).to_owned();
            let more = [("window", reading.window.name().to_owned()), ("family", family)];
            (account(v).into_iter().chain(more).collect(), f64::from(reading.used) / 1_000.0)
        })
    });
    page.gauge("account_window_used_ratio", "How full its windows are, as its upstream tells.", used);
    Ok(HttpResponse::Ok().content_type(TEXT).body(page.0))
}
