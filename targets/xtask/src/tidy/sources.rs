//! What a file of the tree may hold.
//!
//! Owns the rules on single files: how a source opens, how long it may grow, what must not be left in it, and
//! that nothing in the tree points at one machine or at places that may be gone tomorrow.

use crate::tidy::{Source, arrows};
use crate::workspace::Workspace;

/// Lines of a source without its tests. Beyond some 800 there is a noun hiding inside.
const LINES_MAX: usize = 900;

/// Folders of one machine. Cut in two, or this file would accuse itself.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("/ho", "me/")];

/// Folders that every box of a maker has: where QTS keeps the pictures of its apps.
const BOX_PATHS: &[&str] = &[concat!("/ho", "me/httpd/")];

/// Left behind on the way, and what to do about it.
const LEFTOVERS: &[(&str, &str)] = &[
    (concat!("tod", "o!("), "finish it or write it into docs/status.md"),
    (concat!("unimple", "mented!("), "finish it or write it into docs/status.md"),
    (concat!("#[ign", "ore"), "a test that does not run proves nothing"),
    (concat!("<<<<", "<<< "), "a merge that was not finished"),
    (concat!(">>>>", ">>> "), "a merge that was not finished"),
];

/// Not tests but tools: what adds a golden file, what measures or prints a table for people. Their reasons begin like this.
const TOOLS: &[&str] = &[
    concat!("#[ign", "ore = \"writes "),
    concat!("#[ign", "ore = \"a table "),
    concat!("#[ign", "ore = \"measures"),
];

/// What a sans-IO crate must not touch outside its tests.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now()",
    "SystemTime::now()",
    "tokio::",
];

/// Hosts that a page or a source may link to: texts that stay. Anything else is told by its name.
const HOSTS: &[&str] = &["www.apache.org", "www.rfc-editor.org", "www.w3.org"];

pub(crate) fn check(workspace: &Workspace, sources: &[Source], faults: &mut Vec<String>) {
    let pure: Vec<String> = workspace
        .members
        .iter()
        .filter(|m| arrows::PURE.contains(&m.name.as_str()))
        .map(|m| format!("{}/src/", m.folder))
        .collect();
    for source in sources {
        let pure = pure.iter().any(|folder| source.path.starts_with(folder.as_str()));
        for fault in one(source, pure) {
            faults.push(format!("{}{fault}", source.path));
        }
    }
}

/// The faults of one file, as `:line: text` or `: text`.
fn one(source: &Source, pure: bool) -> Vec<String> {
    // Written by cargo, and the one place where the registry is named.
    if source.path == "Cargo.lock" || source.path.ends_with("/Cargo.lock") {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut say = |text: String| faults.push(format!(":{}: {text}", index + 1));
        let named = |path: &str| {
            let boxes = BOX_PATHS.iter().filter(|of_box| of_box.starts_with(path));
            line.matches(path).count() > boxes.map(|of_box| line.matches(of_box).count()).sum()
        };
        for path in MACHINE_PATHS.iter().filter(|path| named(path)) {
            say(format!("names {path}, a folder of one machine"));
        }
        for host in hosts(line).filter(|host| !allowed(host)) {
            say(format!("links to {host}; tell it by name, links rot (allowed hosts: tidy/sources.rs)"));
        }
        let tool = TOOLS.iter().any(|mark| line.contains(mark));
        for (word, advice) in LEFTOVERS.iter().filter(|(word, _)| line.contains(word) && !tool) {
            say(format!("{word} is left over: {advice}"));
        }
    }
    if source.path.ends_with("/Cargo.toml") && !source.text.contains("[lints]\nworkspace = true") {
        faults.push(": does not take the workspace's lints ([lints] workspace = true)".to_owned());
    }
    if source.path.ends_with(".rs") {
        rust(source, pure, &mut faults);
    }
    faults
}

fn rust(source: &Source, pure: bool, faults: &mut Vec<String>) {
    // `x/tests.rs` is the end of `x.rs`, which has said it all.
    if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
        faults
            .push(":1: opens without //! (what it owns, what it leaves out, what to read first)".to_owned());
    }
    let all_tests =
        source.path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "benches");
    let code = if all_tests { 0 } else { lines_without_tests(&source.text) };
    if code > LINES_MAX {
        faults
            .push(format!(": {code} lines without tests, at most {LINES_MAX}: find the noun hiding inside"));
    }
    for (index, line) in source.text.lines().enumerate() {
        let statement = line.split("//").next().unwrap_or_default();
        if index < code && pure {
            for word in IMPURE.iter().filter(|word| statement.contains(**word)) {
                faults.push(format!(":{}: {word} in a sans-IO crate; take it as an argument", index + 1));
            }
        }
        // A helper that asks again every few milliseconds is fine; sitting out whole seconds is not.
        if index >= code && statement.contains(concat!("sle", "ep(Duration::from_secs(")) {
            faults.push(format!(":{}: a test sleeps for seconds; wait for what it waits for", index + 1));
        }
    }
}

/// Lines before the test module at the end.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{'))
        .unwrap_or(lines.len())
}

/// The hosts of the addresses in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(|(at, mark)| {
        let scheme = line[..at].rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let rest = &line[at + mark.len()..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".-_[:]@".contains(c))).unwrap_or(rest.len());
        let host = rest[..end].rsplit('@').next().unwrap_or_default();
        let host = if host.starts_with('[') { host } else { host.split(':').next().unwrap_or_default() };
        // A sentence may end behind an address.
        let host = host.trim_end_matches('.');
        (["http", "https"].contains(&scheme) && host.contains('.')).then_some(host)
    })
}

fn allowed(host: &str) -> bool {
    let reserved = ["example", "invalid", "test", "local", "internal"];
    let last = host.rsplit('.').next().unwrap_or_default();
    let number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    let example = ["example.com", "example.org", "example.net"];
    number
        || reserved.contains(&last)
        || example.iter().any(|e| host == *e || host.ends_with(&format!(".{e}")))
        || HOSTS.contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(path: &str, text: &str, pure: bool, fault: Option<&str>) {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let faults = one(&source, pure);
        match fault {
            None => assert!(faults.is_empty(), "{faults:?}"),
            Some(part) => assert!(faults.iter().any(|f| f.contains(part)), "{faults:?} lack {part:?}"),
        }
    }

    #[test]
    fn sources_open_with_their_purpose() {
        expect("a/src/b.rs", "//! Owns b.\n", false, None);
        expect("a/src/b.rs", "use std::fmt;\n", false, Some("opens without"));
        expect("a/b.txt", "use std::fmt;\n", false, None);
        expect("a/src/b/tests.rs", "use std::fmt;\n", false, None);
    }

    #[test]
    fn long_files_are_told_apart_from_long_tests() {
        let tests = "#[cfg(test)]\nmod tests {\n";
        let long = "fn f() {}\n".repeat(LINES_MAX);
        expect("a/src/b.rs", &format!("//! b\n{long}"), false, Some("901 lines"));
        expect("a/src/b.rs", &format!("//! b\n{tests}{long}"), false, None);
        expect("a/tests/b.rs", &format!("//! b\n{long}"), false, None);
    }

    #[test]
    fn nothing_points_at_one_machine() {
        for path in MACHINE_PATHS {
            expect("notes.md", &format!("see {path}x"), false, Some("one machine"));
        }
        expect("notes.md", "see /var/lib/flotilla and /tmp", false, None);
        expect("head.sh", &format!("cp x {}RSS/", BOX_PATHS[0]), false, None);
        let both = format!("cp {}x {}RSS/", MACHINE_PATHS[3], BOX_PATHS[0]);
        expect("head.sh", &both, false, Some("one machine"));
    }

    #[test]
    fn links_lead_to_texts_that_stay() {
        let link = |host: &str| format!("see {}://{host}/x.", "https");
        expect("notes.md", &link("somewhere.io"), false, Some("links to somewhere.io"));
        expect("notes.md", &link("user:pw@somewhere.io:80"), false, Some("links to somewhere.io"));
        for host in
            ["127.0.0.1:80", "localhost", "www.rfc-editor.org", "control.example", "[::1]:1", "{http}"]
        {
            expect("notes.md", &link(host), false, None);
        }
        expect("Cargo.lock", &link("somewhere.io"), false, None);
        expect("a/fuzz/Cargo.lock", &link("somewhere.io"), false, None);
    }

    #[test]
    fn every_crate_takes_the_lints() {
        expect("a/b/Cargo.toml", "[package]\nname = \"b\"\n", false, Some("the workspace's lints"));
        expect("a/b/Cargo.toml", "[lints]\nworkspace = true\n", false, None);
        expect("Cargo.toml", "[workspace]\n", false, None);
    }

    #[test]
    fn leftovers_are_found() {
        for (word, _) in LEFTOVERS {
            expect("a/src/b.rs", &format!("//! b\n{word}"), false, Some("left over"));
        }
    }

    #[test]
    fn tools_among_the_tests_may_be_ignored() {
        let line = |reason: &str| format!("//! b\n{} = \"{reason}\"]\n", LEFTOVERS[2].0);
        expect("a/tests/b.rs", &line("writes the golden files of a new version"), false, None);
        expect("a/tests/b.rs", &line("slow"), false, Some("left over"));
    }

    #[test]
    fn sans_io_crates_ask_nobody_the_time() {
        let text = "//! b\nlet now = std::time::Instant::now();\n";
        expect("a/src/b.rs", text, true, Some("sans-IO"));
        expect("a/src/b.rs", text, false, None);
        expect("a/src/b.rs", "//! b\n// unlike std::time::Instant\n", true, None);
        expect("a/src/b.rs", "//! b\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n", true, None);
    }

    #[test]
    fn tests_do_not_sit_out_seconds() {
        let nap = concat!("sle", "ep(Duration::from_secs(5));\n");
        expect("a/tests/b.rs", &format!("//! b\n{nap}"), false, Some("sleeps"));
        expect("a/src/b.rs", &format!("//! b\n{nap}"), false, None);
        expect("a/src/b.rs", &format!("//! b\n#[cfg(test)]\nmod tests {{\n{nap}}}\n"), false, Some("sleeps"));
    }
}
