//! Rules of the house that a machine can check.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The code of a file, without its unit tests.
fn code(path: &str) -> String {
    let text = read(path);
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

#[test]
fn pure_cores_do_no_io() {
    let mut files = [
        "node/src/module/program.rs",
        "node/src/id.rs",
        "node/src/call/dedupe/book.rs",
        "node/src/call/destination.rs",
        "node/src/handoff/core.rs",
        "node/src/placement/document.rs",
        "node/src/placement/scheduler.rs",
        "node/src/placement/spec.rs",
        "node/src/placement/state.rs",
        "node/src/placement/view.rs",
        "node/src/trust/client.rs",
        "node/src/trust/operators.rs",
        "node/src/trust/policy.rs",
        "proto/src/describe.rs",
    ]
    .map(str::to_owned)
    .to_vec();
    for folder in ["node/src/placement/document", "node/src/placement/scheduler"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        files.extend(entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap())));
    }
    for file in files {
        let code = code(&file);
        for word in ["tokio", "tonic::", "Instant", "SystemTime", "async ", "std::fs", "std::net"] {
            assert!(!code.contains(word), "{file} names `{word}`: I/O and time belong in the shell around it");
        }
    }
}

/// All rust files below a folder.
fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.extension() {
            _ if path.is_dir() => below(&path, files),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
}

/// Or the simulation would simulate less than a whole node.
#[test]
fn a_node_gets_network_disk_and_clocks_from_one_place_each() {
    let source = root().join("node/src");
    let mut files = Vec::new();
    below(&source, &mut files);
    let places = ["net.rs", "disk.rs", "clock.rs", "cli.rs"].map(|place| source.join(place));
    for path in files.into_iter().filter(|path| !places.contains(path) && !path.ends_with("tests.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for word in
            ["tokio::net", "std::net::Tcp", "std::net::Udp", "spawn_blocking", "connect_lazy()", "clock_gettime"]
        {
            assert!(!code.contains(word), "{} names `{word}`: see net.rs, disk.rs and clock.rs", path.display());
        }
    }
}

#[test]
fn one_table_names_grpc_codes() {
    let folders = ["module", "membership", "handoff", "admin"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(root().join("node/src").join(folder)).unwrap());
    for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("Code::"), "{} names a gRPC code: add a variant to status.rs", path.display());
    }
}

#[test]
fn the_operators_tool_knows_only_the_wire_contract() {
    let manifest = read("cluster-cli/Cargo.toml");
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
    let names = |name: &str| dependencies.lines().any(|line| line.split([' ', '=', '.']).next() == Some(name));
    assert!(names("outpost-proto"));
    assert!(!names("outpost"), "cluster-cli depends on the node");
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let loaded = outpost::App::new("app", "1").load(&outpost::Sources::default()).unwrap();
    let page = read("docs/configuration.md");
    for entry in loaded.entries() {
        let row = format!("| `{}` | `{}` |", entry.key, entry.value);
        assert!(page.contains(&row), "docs/configuration.md has no row that begins {row}");
    }
}

/// A block that begins with the name of a file is from there, paragraph by paragraph.
#[test]
fn what_a_page_quotes_is_in_the_code() {
    let page = read("docs/state.md");
    let quotes: Vec<&str> = page.split("```rust,ignore\n// ").skip(1).collect();
    assert_eq!(quotes.len(), 3);
    for quote in quotes {
        let (file, quoted) = quote.split_once('\n').unwrap();
        let (quoted, _) = quoted.split_once("\n```").unwrap();
        let code = read(file);
        for paragraph in quoted.split("\n\n") {
            assert!(code.contains(paragraph), "docs/state.md quotes {file}, which has not:\n{paragraph}");
        }
    }
}
