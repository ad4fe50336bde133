//! `migrate`: looks at the schema of the store, and moves a store from one engine to the other. It talks to the stores
//! themselves, not to a relay, and none may run on them meanwhile.

use super::table::Table;
use super::{Failure, print};
use crate::settings::{RedisAddress, ServeFlags, Settings, environment};
use crate::startup::migrate::{self, Place};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The schema of the store, or a move from one engine to the other
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// Where from: sqlite:PATH (of relay.db), a Redis address, or `redis` for the settings' one
    #[arg(long, value_name = "STORE", requires = "to")]
    from: Option<String>,
    /// Where to; it must be empty, or hold what an interrupted move put there
    #[arg(long, value_name = "STORE", requires = "from")]
    to: Option<String>,
    /// What is applied and what is pending; this is also what happens without a flag
    #[arg(long, conflicts_with_all = ["from", "dry_run"])]
    status: bool,
    /// What would be done; nothing is written
    #[arg(long)]
    dry_run: bool,
    /// The Redis to look at [default: the settings']
    #[arg(long, value_name = "URL", conflicts_with = "from")]
    redis_url: Option<String>,
    /// Where the embedded store and the sealing key are [default: that of the store to move, else ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Does what was asked.
pub fn run(args: &MigrateArgs) -> Result<(), Failure> {
    let flags =
        ServeFlags { data_dir: args.data_dir.clone(), redis_url: args.redis_url.clone(), ..ServeFlags::default() };
    let settings = Settings::load(&flags, environment()).map_err(|e| Failure::Usage(e.to_string()))?;
    let refused = |e: crate::startup::StartError| Failure::Refused(e.to_string());
    let system = actix_web::rt::System::new();
    if let (Some(from), Some(to)) = (&args.from, &args.to) {
        let (from, to) = (place(from, &settings)?, place(to, &settings)?);
        let key = settings.sealing_key.as_ref();
        let report =
            system.block_on(migrate::copy(&from, &to, args.data_dir.as_deref(), key, args.dry_run)).map_err(refused)?;
        let value = serde_json::to_value(&report).unwrap_or_default();
        return print(&if args.json { format!("{value:#}") } else { told(&value) });
    }
    let place = match settings.redis_options() {
        Some(options) => Place::Redis(Box::new(options)),
        None => Place::Sqlite(settings.data_dir.join("relay.db")),
    };
    let value = if args.dry_run {
        json!({ "migrations": system.block_on(migrate::dry_run(&place)).map_err(refused)? })
    } else {
        json!({ "migrations": system.block_on(migrate::status(&place)).map_err(refused)? })
    };
    print(&if args.json { format!("{value:#}") } else { migrations(&value, args.dry_run) })
}

fn place(text: &str, settings: &Settings) -> Result<Place, Failure> {
    if let Some(path) = text.strip_prefix("sqlite:") {
        return Ok(Place::Sqlite(PathBuf::from(path)));
    }
    let named = if text == "redis" { Ok(settings.redis.url.clone()) } else { RedisAddress::parse(text) };
    let url = named.map_err(Failure::Usage)?.url().ok_or_else(|| {
        Failure::Usage(
            "expected sqlite:PATH, a Redis address, or `redis` for that of CLAUDE_RELAY_REDIS_URL or the settings file"
                .to_owned(),
        )
    })?;
    Ok(Place::Redis(Box::new(settings.redis_options_at(url))))
}

fn told(report: &Value) -> String {
    let mut table = Table::new(&["", "SOURCE", "TARGET"]);
    for what in ["accounts", "keys", "facts", "sums", "open", "offsets"] {
        table.row([what.to_owned(), report["source"][what].to_string(), report["target"][what].to_string()]);
    }
    let written = &report["written"];
    let verb = if report["dry_run"] == true { "would be written" } else { "written; source and target are equal" };
    format!("{}\n{written} {verb}", table.render())
}

fn migrations(value: &Value, forecast: bool) -> String {
    let list = value["migrations"].as_array().cloned().unwrap_or_default();
    if list.is_empty() {
        return "nothing is pending".to_owned();
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut table = Table::new(if forecast {
        &["VERSION", "NAME", "KEYS", "CHANGES"]
    } else {
        &["VERSION", "NAME", "STATE", "APPLIED"]
    });
    for migration in &list {
        let (version, name) = (text(&migration["version"]), text(&migration["name"]));
        if forecast {
            table.row([version, name, text(&migration["keys"]), text(&migration["changes"])]);
        } else {
            let applied = &migration["applied"];
            let state = if applied.is_null() { "pending" } else { "applied" };
            table.row([version, name, state.to_owned(), applied["applied_at"].as_str().unwrap_or("-").to_owned()]);
        }
    }
    table.render()
}
