//! What rules mean is what git says that they mean.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use folder_index::Ignores;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// Lines and paths of a few letters, so that they often meet. Not among them is what we do not take as git does
/// (docs/decisions/0029-patterns-without-regular-expressions.md): choices, brackets without an end, classes beyond ASCII, what
/// is refused, `**` behind the beginning of a name, and a line with nothing but `!` and slashes.
fn line() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        5 => "[ab]",
        3 => Just("*".to_owned()),
        1 => Just("?".to_owned()),
        3 => Just("/".to_owned()),
        2 => Just("**".to_owned()),
        2 => Just("/**/".to_owned()),
        1 => Just("***".to_owned()),
        1 => Just("[a]".to_owned()),
        1 => Just("[!a]".to_owned()),
        1 => Just("[^b-z.]".to_owned()),
        1 => Just("[]-]".to_owned()),
        1 => Just("[a-b-.]".to_owned()),
        1 => Just(r"[\]\\a]".to_owned()),
        1 => Just("[[:lower:]-]".to_owned()),
        1 => Just("[[:punct:]]".to_owned()),
        1 => Just("\\a".to_owned()),
        1 => Just("\\*".to_owned()),
        1 => Just("\\ ".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("!".to_owned()),
        1 => Just("#".to_owned()),
        1 => Just(" ".to_owned()),
        1 => Just("-".to_owned()),
        1 => Just("]".to_owned()),
        1 => Just("ä".to_owned()),
    ];
    let line = proptest::collection::vec(piece, 1..7).prop_map(|pieces| pieces.concat());
    line.prop_filter("not as git does", |line| {
        let bare = line.trim_end_matches(' ').trim_start_matches('!');
        let bare = bare.strip_prefix('/').unwrap_or(bare);
        // git cuts off what has no wildcards before it looks at the rest, to which `**` is at the beginning then.
        let cut = bare.find(['*', '?', '[', '\\']).filter(|at| *at > 0 && !bare[..*at].ends_with('/'));
        let first = cut.is_some_and(|at| bare[at..].starts_with("**"));
        !(first || line.contains("//") || bare.trim_matches('/').is_empty())
    })
}

fn path() -> impl Strategy<Value = String> {
    r"[ab.ä \\\]*#!-]{1,3}(/[ab.-]{1,2}){0,3}"
        .prop_filter("names", |path| path.split('/').all(|name| name != "." && name != ".."))
}

/// Which of the paths git ignores, as files that need not be there.
fn ignored(repository: &Path, rules: &str, paths: &[String]) -> Vec<String> {
    std::fs::write(repository.join(".gitignore"), rules).expect("written");
    let mut git = Command::new("git");
    git.args([
        "-c",
        "core.excludesFile=",
        "-c",
        "core.ignoreCase=false",
        "check-ignore",
        "--no-index",
        "-z",
        "--stdin",
    ]);
    let mut git = git
        .current_dir(repository)
        .env("GIT_CEILING_DIRECTORIES", repository)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git runs");
    // Less than a pipe holds.
    git.stdin.take().expect("piped").write_all(paths.join("\0").as_bytes()).expect("written");
    let output = git.wait_with_output().expect("git ends");
    // 1: none of them.
    assert!(output.status.code().is_some_and(|code| code < 2), "{rules:?}: {output:?}");
    let output = String::from_utf8(output.stdout).expect("as it was told");
    output.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

#[test]
fn git_says_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = Command::new("git").args(["init", "-q"]).current_dir(dir.path()).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "git: {made:?}");
        eprintln!("SKIPPED git_says_the_same: git is needed ({made:?})");
        return;
    }
    // The same ones each time: git has corners that nobody has found yet, and they are no news of a change here.
    let config = ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::default());
    let mut runner = TestRunner::new_with_rng(config, rng);
    let cases = (proptest::collection::vec(line(), 1..5), proptest::collection::vec(path(), 40));
    runner
        .run(&cases, |(lines, paths)| {
            let rules = lines.join("\n") + "\n";
            let own = Ignores::exact(rules.as_bytes(), &[]).expect("rules");
            let git = ignored(dir.path(), &rules, &paths);
            for path in &paths {
                prop_assert_eq!(
                    own.leaves_out(path.as_bytes(), false),
                    git.contains(path),
                    "{:?} {:?}",
                    lines,
                    path
                );
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
