//! Which entries are left out: rules as in a `.gitignore`, from the job and from a file in the folder (§7).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// File at the top of a folder with rules for it. It is itself an ordinary file, and travels.
pub const IGNORE_FILE: &[u8] = b".flotillaignore";

/// Compiled rules. The later rule wins; `!` takes an exception back, but nothing below a folder that is
/// left out.
#[derive(Clone, Debug)]
pub struct Ignores {
    rules: Option<Gitignore>,
}

impl Ignores {
    /// No rules.
    pub fn none() -> Self {
        Self { rules: None }
    }

    /// From the text of the folder's file and the job's rules, which win. Also returns the lines that are
    /// no rules, with the reason; the others count.
    pub fn new(file: &[u8], job: &[String]) -> (Self, Vec<String>) {
        let mut builder = GitignoreBuilder::new("");
        let (mut bad, mut count) = (Vec::new(), 0);
        let text = String::from_utf8_lossy(file);
        for line in text.lines().chain(job.iter().map(String::as_str)) {
            count += usize::from(!line.trim().is_empty());
            if let Err(error) = builder.add_line(None, line) {
                bad.push(error.to_string());
            }
        }
        if count == 0 {
            return (Self::none(), bad);
        }
        match builder.build() {
            Ok(rules) => (Self { rules: Some(rules) }, bad),
            Err(error) => {
                bad.push(error.to_string());
                (Self::none(), bad)
            }
        }
    }

    /// Whether the entry at this path is left out, given that no folder above it is.
    pub fn ignores(&self, path: &[u8], is_folder: bool) -> bool {
        match &self.rules {
            Some(rules) => rules.matched(Path::new(OsStr::from_bytes(path)), is_folder).is_ignore(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
