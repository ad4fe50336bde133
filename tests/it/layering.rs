//! The house's arrows: `main → startup → http → {upstream, actors} → {platform, store} → domain`. They may skip
//! down, never up or sideways; the lower layers know no framework, and the environment is read in one place.

use std::path::{Path, PathBuf};

/// Each layer with what it may use of the crate besides itself.
const LAYERS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("clock", &["domain"]),
    ("settings", &["domain", "store"]),
    ("platform", &["domain"]),
    ("store", &["domain"]),
    ("telemetry", &["settings"]),
    ("actors", &["platform", "store", "domain", "clock"]),
    ("upstream", &["platform", "domain", "clock"]),
    ("http", &["actors", "upstream", "platform", "store", "domain", "clock", "settings"]),
    ("startup", &["http", "actors", "upstream", "store", "domain", "clock", "settings", "telemetry"]),
    ("cli", &["startup", "settings", "domain", "store"]),
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            into.push(entry);
        }
    }
}

/// Every file of `src` with its layer and its text without comments.
fn files() -> Vec<(PathBuf, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let read = |path: PathBuf| {
        let inside = path.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let layer = first.trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        (inside.to_owned(), layer, code)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn arrows_point_down() {
    for (path, layer, code) in files() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            assert!(layer == "main" || layer == "lib", "{} has no layer", path.display());
            continue;
        };
        for used in code.split("crate::").skip(1).filter_map(|rest| rest.split([':', ';', ',', ' ', '{']).next()) {
            let known = LAYERS.iter().any(|(name, _)| *name == used);
            assert!(!known || used == layer || allowed.contains(&used), "{} uses crate::{used}", path.display());
        }
        let lists = code.contains("crate::{");
        assert!(!lists || layer == "http" || layer == "cli" || layer == "startup", "{}: name each use", path.display());
    }
}

#[test]
fn the_lower_layers_know_no_framework() {
    for (path, layer, code) in files() {
        if layer == "domain" || layer == "platform" {
            for banned in ["actix", "tokio", "redis", "rusqlite", "awc", "Utc::now", "SystemTime::now", "Instant::now"]
            {
                let code = code.split("#[cfg(test)]").next().unwrap();
                assert!(!code.contains(banned), "{} names {banned}", path.display());
            }
        }
        if layer != "settings" {
            assert!(!code.contains("env::var"), "{} reads the environment", path.display());
        }
        let clock_reader = ["clock", "http", "cli"].contains(&layer.as_str());
        assert!(clock_reader || !code.contains("Utc::now("), "{} reads the clock", path.display());
    }
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, _, _) in files() {
        let text = std::fs::read_to_string(root.join(&path)).unwrap();
        assert!(text.starts_with("//!"), "{} does not say what it owns", path.display());
        let lines = text.lines().count();
        assert!(lines <= 400, "{} has {lines} lines", path.display());
    }
}
