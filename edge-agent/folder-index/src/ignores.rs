//! Which entries are left out: rules as in a `.gitignore`, from the job and from a file in the folder (§7).

use std::sync::Arc;

use crate::limits::{IGNORE_LEN_MAX, RULE_LEN_MAX, RULES_MAX, WILDCARDS_MAX};
use crate::patterns::{self, Patterns};

/// File at the top of a folder with rules for it. Runs bring it where there is none; synchronizations leave it alone.
pub const IGNORE_FILE: &[u8] = b".flotillaignore";

/// The part of a path that ends with the first name that some file system takes for [`IGNORE_FILE`], if it has one: what is
/// there may be the rules of somebody's folder.
pub fn rules_in(path: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    path.split(|byte| *byte == b'/').find_map(|name| {
        let start = end;
        end = start + name.len() + 1;
        name.eq_ignore_ascii_case(IGNORE_FILE).then(|| &path[..start + name.len()])
    })
}

/// Why a folder's rules cannot be used by whoever depends on all of them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// The file is too large.
    #[error("the rules are longer than {IGNORE_LEN_MAX} bytes")]
    TooLong,
    /// Too many lines with a rule.
    #[error("there are more than {RULES_MAX} rules")]
    TooMany,
    /// They would take too long.
    #[error("the rules have more than {WILDCARDS_MAX} wildcards together")]
    TooManyWildcards,
    /// A line that is no rule.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A rule of the job that is none.
    #[error("rule {number} of the job: {why}")]
    Rule {
        /// Which of the job's rules, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl RulesError {
    /// Whether there is too much of something.
    pub fn is_limit(&self) -> bool {
        !matches!(self, Self::Line { .. } | Self::Rule { .. })
    }
}

/// Compiled rules. The later rule wins; `!` takes an exception back, but nothing below a folder that is
/// left out.
#[derive(Clone, Debug)]
pub struct Ignores {
    rules: Option<Arc<Patterns>>,
}

impl Ignores {
    /// No rules.
    pub fn none() -> Self {
        Self { rules: None }
    }

    /// From the text of the folder's file and the job's rules, which win. Also returns the lines that are
    /// no rules, with the reason, as are those that would be too long, and that would take too long; the others count.
    pub fn new(file: &[u8], job: &[String]) -> (Self, Vec<String>) {
        let mut rules = Patterns::default();
        let (mut bad, mut count, mut wildcards) = (Vec::new(), 0, 0);
        let text = String::from_utf8_lossy(file);
        for line in text.lines().chain(job.iter().map(String::as_str)) {
            let cost = patterns::cost(line);
            let taken = if line.len() > RULE_LEN_MAX {
                Err(too_long())
            } else if wildcards + cost > WILDCARDS_MAX {
                Err(RulesError::TooManyWildcards.to_string())
            } else {
                rules.add(line)
            };
            match taken {
                Ok(is_rule) => {
                    count += usize::from(is_rule);
                    wildcards += cost * usize::from(is_rule);
                }
                Err(why) => bad.push(format!("{}: {why}", shown(line))),
            }
        }
        (Self { rules: (count > 0).then(|| Arc::new(rules)) }, bad)
    }

    /// From the text of the folder's file and the job's rules, which win, every line of which has to be understood: a rule
    /// that is passed over may be the one that matters. A byte order mark at the start is none of it.
    ///
    /// # Errors
    /// If a line is no rule, or there is more than the limits allow.
    pub fn exact(file: &[u8], job: &[String]) -> Result<Self, RulesError> {
        if file.len() as u64 > IGNORE_LEN_MAX {
            return Err(RulesError::TooLong);
        }
        let lines = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file).split(|&b| b == b'\n');
        let mut exact = Exact::default();
        for (nth, line) in lines.enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            exact.add(line, |why| RulesError::Line { line: nth + 1, why })?;
        }
        for (nth, rule) in job.iter().enumerate() {
            exact.add(rule.as_bytes(), |why| RulesError::Rule { number: nth + 1, why })?;
        }
        Ok(Self { rules: exact.build() })
    }

    /// Whether the entry at this path, or a folder above it, is left out.
    pub fn leaves_out(&self, path: &[u8], is_folder: bool) -> bool {
        let mut slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
        slashes.any(|(at, _)| self.ignores(&path[..at], true)) || self.ignores(path, is_folder)
    }

    /// Whether the entry at this path is left out, given that no folder above it is.
    pub fn ignores(&self, path: &[u8], is_folder: bool) -> bool {
        let last = self.rules.as_ref().and_then(|rules| rules.last(path, is_folder));
        last.is_some_and(|(_, takes_back)| !takes_back)
    }
}

fn too_long() -> String {
    format!("longer than {RULE_LEN_MAX} bytes")
}

/// So much of a line that it is known again.
fn shown(line: &str) -> String {
    line.chars().take(80).collect()
}

/// Lines that all have to be understood.
#[derive(Default)]
struct Exact {
    patterns: Patterns,
    count: usize,
    wildcards: usize,
}

impl Exact {
    /// Whether it was a rule.
    fn add(&mut self, line: &[u8], bad: impl Fn(String) -> RulesError) -> Result<bool, RulesError> {
        if line.len() > RULE_LEN_MAX {
            return Err(bad(too_long()));
        }
        let line = std::str::from_utf8(line).map_err(|_| bad("not UTF-8".into()))?;
        if line.contains('\0') {
            return Err(bad("a zero byte".into()));
        }
        if line.starts_with('#') || line.trim().is_empty() {
            return Ok(false);
        }
        self.count += 1;
        self.wildcards += patterns::cost(line);
        if self.count > RULES_MAX {
            return Err(RulesError::TooMany);
        }
        if self.wildcards > WILDCARDS_MAX {
            return Err(RulesError::TooManyWildcards);
        }
        self.patterns.add(line).map_err(bad)
    }

    fn build(self) -> Option<Arc<Patterns>> {
        (self.count > 0).then(|| Arc::new(self.patterns))
    }
}

/// What comes before the rest: patterns in the form of rules, one after the other.
#[derive(Clone, Debug)]
pub struct Priorities {
    rules: Option<Arc<Patterns>>,
    /// Which of the patterns each rule is.
    numbers: Vec<usize>,
}

impl Priorities {
    /// From patterns, the most urgent first.
    ///
    /// # Errors
    /// If one is no pattern, or takes something back (`!`), or there is more than the limits of rules allow.
    pub fn new(patterns: &[String]) -> Result<Self, RulesError> {
        let (mut exact, mut numbers) = (Exact::default(), Vec::new());
        // Of rules the last one that fits counts.
        for (nth, pattern) in patterns.iter().enumerate().rev() {
            let bad = |why| RulesError::Rule { number: nth + 1, why };
            if pattern.starts_with('!') {
                return Err(bad("takes something back".into()));
            }
            if exact.add(pattern.as_bytes(), bad)? {
                numbers.push(nth);
            }
        }
        Ok(Self { rules: exact.build(), numbers })
    }

    /// Which pattern the entry at this path fits first, by its number from 0. What is in a folder that fits one is as
    /// urgent as that: see to it, this looks at the path alone.
    pub fn of(&self, path: &[u8], is_folder: bool) -> Option<usize> {
        let (rule, _) = self.rules.as_ref()?.last(path, is_folder)?;
        self.numbers.get(rule).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_numbered_by_the_first_pattern_that_fits() {
        let of = |patterns: &[&str]| {
            Priorities::new(&patterns.iter().map(|p| String::from(*p)).collect::<Vec<_>>())
        };
        let first = of(&["/boot/", "*.index", "# note", "/boot/big", "*.index"]).expect("patterns");
        for (path, folder, class) in [
            (&b"boot"[..], true, Some(0)),
            (b"boot", false, None),
            (b"x/boot", true, None),
            (b"x/y.index", false, Some(1)),
            (b"boot/big", false, Some(3)),
            (b"# note", false, None),
            (b"", true, None),
            (b"name\xff.index", false, Some(1)),
        ] {
            assert_eq!(first.of(path, folder), class, "{}", path.escape_ascii());
        }
        assert_eq!(of(&[]).expect("none").of(b"x", false), None);
        for bad in [&["x", "!y"][..], &["[z-a]"], &["a\0b"]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rules_of_a_job_win_and_are_understood_or_refused() {
        let job = |rules: &[&str]| rules.iter().map(|rule| String::from(*rule)).collect::<Vec<_>>();
        let rules = Ignores::exact(b"*.tmp\n!keep.tmp\n", &job(&["keep.*", "!very.tmp"])).expect("rules");
        let left_out = |path: &[u8]| rules.leaves_out(path, false);
        assert!(left_out(b"a.tmp") && left_out(b"keep.tmp") && !left_out(b"very.tmp"));
        let refused = Ignores::exact(b"*.tmp\n", &job(&["fine", "[z-a]"])).expect_err("refused");
        assert!(matches!(&refused, RulesError::Rule { number: 2, .. }) && !refused.is_limit(), "{refused}");
        let many = vec![String::from("x"); RULES_MAX];
        assert_eq!(Ignores::exact(b"y", &many).expect_err("refused"), RulesError::TooMany);
    }

    #[test]
    fn rules_are_those_of_gitignore() {
        let file = b"# comment\n*.tmp\n!keep.tmp\nbuild/\n/only-top\nlogs/**/*.log\n\xff\xfe\n";
        let (rules, bad) = Ignores::new(file, &["*.secret".into(), "!*.log".into()]);
        assert!(bad.is_empty(), "{bad:?}");
        for (path, folder, ignored) in [
            (&b"a.tmp"[..], false, true),
            (b"deep/er/a.tmp", false, true),
            (b"deep/keep.tmp", false, false),
            (b"build", true, true),
            (b"build", false, false),
            (b"x/build", true, true),
            (b"only-top", false, true),
            (b"x/only-top", false, false),
            (b"x.secret", false, true),
            (b"logs/a/b/c.log", false, false),
            (b"name\xffwith\xfebytes", false, false),
        ] {
            assert_eq!(rules.ignores(path, folder), ignored, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn a_bad_line_is_told_and_the_others_count() {
        let (rules, bad) = Ignores::new(b"[z-a]\n*.o\n", &[]);
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(rules.ignores(b"x.o", false));
        let (rules, bad) = Ignores::new(b"\n\n", &[]);
        assert!(bad.is_empty() && !rules.ignores(b"x.o", false));
    }

    #[test]
    fn exact_rules_are_understood_or_refused() {
        let rules = Ignores::exact(b"\xef\xbb\xbf*.tmp\r\n# note\n\n/a/b/\n!keep.tmp", &[]).expect("rules");
        for (path, folder, left_out) in [
            (&b"x/y.tmp"[..], false, true),
            (b"x/keep.tmp", false, false),
            (b"a/b", true, true),
            (b"a/b/c/d", false, true),
            (b"a/b", false, false),
            (b"a", true, false),
            (b"", true, false),
        ] {
            assert_eq!(rules.leaves_out(path, folder), left_out, "{}", path.escape_ascii());
        }
        assert!(!Ignores::exact(b"", &[]).expect("no rules").leaves_out(b"x", false));
        let refused = |text: &[u8]| Ignores::exact(text, &[]).expect_err("refused");
        let line = |text: &[u8]| match refused(text) {
            RulesError::Line { line, .. } => line,
            other => panic!("{other}"),
        };
        assert_eq!(line(b"*.o\n[z-a]\n"), 2);
        assert_eq!(line(b"*.o\n\nname\xff\n"), 3);
        assert_eq!(line(b"\x7fELF\0\0\0"), 1);
        assert_eq!(line(&[b"ok\n".to_vec(), vec![b'a'; RULE_LEN_MAX + 1]].concat()), 2);
        assert_eq!(line("{".repeat(900).as_bytes()), 1);
        assert_eq!(refused(&vec![b'#'; IGNORE_LEN_MAX as usize + 1]), RulesError::TooLong);
        assert_eq!(refused("name\n".repeat(10_000).as_bytes()), RulesError::TooMany);
        assert_eq!(refused("a*b\n".repeat(WILDCARDS_MAX + 1).as_bytes()), RulesError::TooManyWildcards);
        let most: Vec<String> = (0..RULES_MAX).map(|n| format!("/folder {n}/file")).collect();
        let rules = Ignores::exact(most.join("\n").as_bytes(), &[]).expect("as many as there may be");
        assert!(rules.ignores(b"folder 1999/file", false) && !rules.ignores(b"folder 2000/file", false));
    }

    /// What is made to be slow, as much of it as there may be, on paths that fit nearly: it ends.
    #[test]
    fn hostile_rules_cost_a_bounded_time() {
        let nearly = |n: usize| format!("{}b{n}", "a".repeat(180));
        let deep = vec!["a"; 300].join("/");
        let deep_rule = format!("**/{}/c", vec!["a"; 100].join("/"));
        for rule in [
            "**/a*a*a*a*a*a*a*a*a*a*a*c?",
            "*a????????????????????c",
            "[ab]*[ab]*{a,b}*{a,b}*c[0-9]",
            "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}*c",
            "**/a/**/a/**/a/**/c",
            &deep_rule,
        ] {
            let each = patterns::cost(rule);
            let text: Vec<String> = (0..WILDCARDS_MAX / each).map(|n| format!("{rule}{n}")).collect();
            let rules = Ignores::exact(text.join("\n").as_bytes(), &[]).expect("within the limits");
            let (paths, begun) = (500, std::time::Instant::now());
            for n in 0..paths {
                assert!(!rules.ignores(format!("{}/{}", nearly(n), nearly(n + 1)).as_bytes(), false));
                assert!(!rules.ignores(format!("{deep}/{n}").as_bytes(), false));
            }
            let each = begun.elapsed() / paths as u32;
            println!("{rule}: {each:?} a path");
            assert!(each < std::time::Duration::from_millis(100), "{rule}: {each:?}");
        }
    }
}
