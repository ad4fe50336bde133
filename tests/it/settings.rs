//! Settings: what comes before what, and that every bad one is named together with where it came from.

use claude_relay::settings::{LogFormat, Origin, ServeFlags, Settings, SettingsError};
use std::path::PathBuf;
use std::time::Duration;

/// A settings file of its own in the system's temporary directory, removed on drop.
struct File(PathBuf);

impl File {
    fn with(text: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("claude-relay-settings-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn flags(&self) -> ServeFlags {
        ServeFlags { config: Some(self.0.clone()), ..ServeFlags::default() }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn load(flags: &ServeFlags, env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::load(flags, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn load_file(text: &str) -> Result<Settings, SettingsError> {
    load(&File::with(text).flags(), &[])
}

fn load_env(env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    load_file_and_env("", env)
}

fn load_file_and_env(text: &str, env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    load(&File::with(text).flags(), env)
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let s = load_file("").unwrap();
    assert_eq!((s.data_dir, s.workers, s.demo), (PathBuf::from("./data"), 0, true));
    assert_eq!(s.listen.addrs(), ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(s.admin_listen.addrs(), ["127.0.0.1:8081".parse().unwrap()]);
    assert_eq!((s.log.format, s.log.level.as_str()), (LogFormat::Auto, "info"));
    assert_eq!((s.limits.max_body_bytes, s.limits.body_memory_bytes), (33_554_432, 1_073_741_824));
    let seconds = |d: Duration| d.as_secs_f64();
    assert_eq!(seconds(s.drain_timeout), 60.0);
    let limits = [s.limits.upload_timeout, s.limits.header_timeout, s.limits.keep_alive];
    assert_eq!(limits.map(seconds), [60.0, 10.0, 75.0]);
    let up = &s.upstream;
    let waits = [up.connect_timeout, up.first_byte_timeout, up.idle_timeout, up.abort_linger];
    assert_eq!(waits.map(seconds), [10.0, 600.0, 300.0, 0.25]);
    let h = &s.health;
    let cooldowns = [h.rate_limited_first, h.overloaded_first, h.longest, h.probe_first, h.probe_longest];
    assert_eq!(cooldowns.map(seconds), [2.0, 1.0, 60.0, 60.0, 3600.0]);
    assert_eq!((h.probe_model.as_str(), s.journal.settle_interval), ("claude-haiku-4-5", Duration::from_millis(250)));
    assert!(s.sealing_key.is_none());
}

#[test]
fn flags_come_before_the_environment_before_the_file_before_the_defaults() {
    let file = File::with("workers = 1\ndemo = true\n[limits]\nkeep_alive = \"1s\"\n[log]\nlevel = \"warn\"\n");
    let env = [("CLAUDE_RELAY_WORKERS", "2"), ("CLAUDE_RELAY_LIMITS_KEEP_ALIVE", "2s"), ("PATH", "/bin")];
    let flags = ServeFlags { workers: Some(3), no_demo: true, ..file.flags() };

    let s = load(&flags, &env).unwrap();
    assert_eq!((s.workers, s.demo, s.log.level.as_str()), (3, false, "warn"));
    assert_eq!((s.limits.keep_alive, s.limits.header_timeout), (Duration::from_secs(2), Duration::from_secs(10)));
    assert_eq!(load(&file.flags(), &env).unwrap().workers, 2);
    assert_eq!(load(&file.flags(), &[]).unwrap().workers, 1);
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let file = File::with("workers = 4");
    let env = [("CLAUDE_RELAY_CONFIG", file.0.to_str().unwrap())];
    assert_eq!(load(&ServeFlags::default(), &env).unwrap().workers, 4);
}

#[test]
fn a_named_file_that_is_missing_is_an_error() {
    let path = PathBuf::from("/nonexistent/relay.toml");
    let flags = ServeFlags { config: Some(path.clone()), ..ServeFlags::default() };
    let error = load(&flags, &[]).unwrap_err();
    assert_eq!(error.origin, Origin::File(path));
    assert!(error.to_string().contains("/nonexistent/relay.toml"), "{error}");
}

#[test]
fn each_bad_setting_is_named_with_its_file() {
    for (text, setting) in [
        ("data_dir = \"\"", "data_dir"),
        ("listen = \"8080\"", "listen"),
        ("listen = \":8080\"", "listen"),
        ("listen = \"127.0.0.1:99999\"", "listen"),
        ("listen = 8080", "listen"),
        ("listen = \"127.0.0.1:8081\"", "admin_listen"),
        ("admin_listen = \"nowhere\"", "admin_listen"),
        ("workers = 257", "workers"),
        ("workers = -1", "workers"),
        ("workers = \"two\"", "workers"),
        ("workers = 1.5", "workers"),
        ("demo = \"yes\"", "demo"),
        ("drain_timeout = 60", "drain_timeout"),
        ("drain_timeout = \"60\"", "drain_timeout"),
        ("drain_timeout = \"2days\"", "drain_timeout"),
        ("log = \"json\"", "log"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[log]\nlevel = \"info,a=[\"", "log.level"),
        ("[limits]\nmax_body_bytes = 1023", "limits.max_body_bytes"),
        ("[limits]\nmax_body_bytes = 268435457", "limits.max_body_bytes"),
        ("[limits]\nbody_memory_bytes = 1048576", "limits.body_memory_bytes"),
        ("[limits]\nupload_timeout = \"0s\"", "limits.upload_timeout"),
        ("[limits]\nheader_timeout = \"soon\"", "limits.header_timeout"),
        ("[limits]\nkeep_alive = true", "limits.keep_alive"),
        ("[limits]\nkeep_alife = \"75s\"", "limits.keep_alife"),
        ("[upstream]\nconnect_timeout = \"0ms\"", "upstream.connect_timeout"),
        ("[upstream]\nfirst_byte_timeout = \"25h\"", "upstream.first_byte_timeout"),
        ("[upstream]\nidle_timeout = \"-1s\"", "upstream.idle_timeout"),
        ("[upstream]\nabort_linger = \"10001ms\"", "upstream.abort_linger"),
        ("[health]\nrate_limited_first = \"2m\"", "health.longest"),
        ("[health]\noverloaded_first = \"0s\"", "health.overloaded_first"),
        ("[health]\nlongest = \"1\"", "health.longest"),
        ("[health]\nprobe_first = \"2h\"", "health.probe_longest"),
        ("[health]\nprobe_longest = []", "health.probe_longest"),
        ("[health]\nprobe_model = \"two words\"", "health.probe_model"),
        ("[journal]\nsettle_interval = \"2h\"", "journal.settle_interval"),
        ("[jornal]\nsettle_interval = \"1s\"", "jornal.settle_interval"),
        ("[other]\n", "other"),
        ("sealing_key = \"00\"", "sealing_key"),
    ] {
        let error = load_file(text).expect_err(text);
        assert_eq!(error.setting, setting, "{text}: {error}");
        assert!(error.to_string().starts_with(&format!("{setting}: ")), "{text}: {error}");
        let crossed = matches!(setting, "admin_listen" | "health.longest" | "health.probe_longest");
        assert!(crossed || matches!(error.origin, Origin::File(_)), "{text}: {error}");
    }
}

#[test]
fn the_bounds_themselves_are_accepted() {
    for text in [
        "workers = 0",
        "workers = 256",
        "drain_timeout = \"0s\"",
        "[limits]\nmax_body_bytes = 1024",
        "[limits]\nmax_body_bytes = 268_435_456",
        "[limits]\nbody_memory_bytes = 33554432",
        "[upstream]\nabort_linger = \"0s\"",
        "[upstream]\nabort_linger = \"10s\"",
        "[upstream]\nfirst_byte_timeout = \"1h 30m\"",
        "[log]\n",
        "listen = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"",
    ] {
        load_file(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
}

#[test]
fn an_error_has_the_value_the_range_and_the_source() {
    let error = load_env(&[("CLAUDE_RELAY_WORKERS", "300")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "workers: expected a whole number from 0 to 256, got 300 (from CLAUDE_RELAY_WORKERS)"
    );
    let error = load_env(&[("CLAUDE_RELAY_UPSTREAM_ABORT_LINGER", "11s")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "upstream.abort_linger: expected a duration such as \"10s\", from 0s to 10s, got \"11s\" (from \
         CLAUDE_RELAY_UPSTREAM_ABORT_LINGER)"
    );
    let flags = ServeFlags { listen: Some("here".to_owned()), ..File::with("").flags() };
    let file = File::with("");
    let flags = ServeFlags { config: Some(file.0.clone()), ..flags };
    assert_eq!(load(&flags, &[]).unwrap_err().origin, Origin::Flag("--listen"));
}

#[test]
fn each_bad_variable_is_named() {
    for (name, value, setting) in [
        ("CLAUDE_RELAY_WORKERS", "", "workers"),
        ("CLAUDE_RELAY_WORKERS", "99999999999999999999", "workers"),
        ("CLAUDE_RELAY_DEMO", "1", "demo"),
        ("CLAUDE_RELAY_LISTEN", "", "listen"),
        ("CLAUDE_RELAY_LOG_FORMAT", "JSON", "log.format"),
        ("CLAUDE_RELAY_UPSTREAM_CONNECT_TIMEOUT", "10", "upstream.connect_timeout"),
        ("CLAUDE_RELAY_LIMITS_MAX_BODY_BYTES", "32MB", "limits.max_body_bytes"),
    ] {
        let error = load_env(&[(name, value)]).expect_err(name);
        assert_eq!((error.setting.as_str(), error.origin), (setting, Origin::Variable(name.to_owned())), "{name}");
    }
}

#[test]
fn an_unknown_variable_is_an_error_that_names_near_ones() {
    for (name, meant) in [
        ("CLAUDE_RELAY_LISTN", "CLAUDE_RELAY_LISTEN"),
        ("CLAUDE_RELAY_CONNECT_TIMEOUT", "CLAUDE_RELAY_UPSTREAM_CONNECT_TIMEOUT"),
        ("CLAUDE_RELAY_SEALING_KEYS", "CLAUDE_RELAY_SEALING_KEY"),
    ] {
        let error = load_env(&[(name, "s3cret")]).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains(&format!("{meant}?")), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    assert!(!load_env(&[("CLAUDE_RELAY_ZZZZZZZZ", "1")]).unwrap_err().to_string().contains("did you mean"));
}

#[test]
fn variables_of_the_client_commands_and_of_kubernetes_are_let_be() {
    load_env(&[
        ("CLAUDE_RELAY_ADMIN_TOKEN", "t"),
        ("CLAUDE_RELAY_ADMIN_URL", "http://127.0.0.1:8081"),
        ("CLAUDE_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("CLAUDE_RELAY_PORT", "tcp://10.0.0.1:8080"),
        ("CLAUDE_RELAY_PORT_8080_TCP_PROTO", "tcp"),
    ])
    .unwrap();
}

#[test]
fn localhost_is_an_address() {
    let s = load_env(&[("CLAUDE_RELAY_LISTEN", "localhost:9090")]).unwrap();
    assert!(!s.listen.addrs().is_empty() && s.listen.addrs().iter().all(|a| a.port() == 9090 && a.ip().is_loopback()));
    assert!(s.effective().contains("listen = \"localhost:9090\""));
}

#[test]
fn the_sealing_key_is_checked_kept_and_never_shown() {
    let hex = "0123456789abcdef".repeat(4);
    let s = load_env(&[("CLAUDE_RELAY_SEALING_KEY", &hex)]).unwrap();
    assert_eq!(s.sealing_key.as_ref().map(|key| key.expose()), Some(hex.as_str()));
    for shown in [s.effective(), format!("{s:?}")] {
        assert!(shown.contains("***") && !shown.contains(&hex), "{shown}");
    }
    for bad in ["", "0123", &hex.replace('0', "g"), &format!("{hex}0")] {
        let error = load_env(&[("CLAUDE_RELAY_SEALING_KEY", bad)]).unwrap_err();
        assert_eq!(error.setting, "CLAUDE_RELAY_SEALING_KEY");
        assert!(bad.is_empty() || !format!("{error} {error:?}").contains(bad), "{error}");
    }
}

#[test]
fn what_is_printed_can_be_loaded_again() {
    let env = [("CLAUDE_RELAY_WORKERS", "7"), ("CLAUDE_RELAY_UPSTREAM_FIRST_BYTE_TIMEOUT", "90s")];
    let first = load_env(&env).unwrap().effective();
    let second = load_file(&first).unwrap().effective();
    assert_eq!(first, second);
    assert!(first.contains("workers = 7") && first.contains("first_byte_timeout = \"1m 30s\""), "{first}");
}

#[test]
fn a_file_that_is_no_toml_is_named_by_its_line_and_not_quoted() {
    let error = load_file("workers = 1\nlisten = s3cret\n").unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains("s3cret"), "{error}");
}

#[test]
fn settings_for_tests_take_free_ports() {
    let s = Settings::for_tests("/tmp/x");
    assert_eq!((s.listen.addrs()[0].port(), s.admin_listen.addrs()[0].port(), s.workers, s.demo), (0, 0, 2, false));
}
