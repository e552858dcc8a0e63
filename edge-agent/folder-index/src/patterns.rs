//! Patterns as in a `.gitignore` (gitignore(5)), held against paths without regular expressions: those would be a tenth
//! of the agent (docs/decisions/0029-patterns-without-regular-expressions.md).
//!
//! Owns what one line means, and which of many lines fits a path last (`tests/gitignore.rs` asks git). What lines are there, and what it means that one
//! fits, is `ignores`.
//!
//! A pattern is cut at its slashes into one for each name of a path, and `**`, which stands for any number of names. Both
//! within a name (`*`) and among names (`**`) it is enough to go back to the last star that was passed: what fitted before
//! it still does. So a pattern costs its length times the path's at worst.

use std::collections::HashMap;

/// What a rule with `{a,b}` stands for is written out; so many patterns at most, as groups multiply.
const CHOICES_MAX: usize = 64;

/// All rules, by what they say.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    rules: Vec<Rule>,
    /// Rules that are one name, anywhere.
    by_name: HashMap<Box<[u8]>, Vec<usize>>,
    /// Rules that are one path.
    by_path: HashMap<Box<[u8]>, Vec<usize>>,
    /// All others, in order; one that was written out has several.
    others: Vec<(usize, Vec<Part>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    only_folders: bool,
    takes_back: bool,
}

/// What a name of a path has to fit, in the order of the path.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// Any number of names, none too.
    AnyDepth,
    Name(Box<[u8]>),
    Like(Box<[Token]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `[a-z]`
    Class(Box<Class>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
    /// Then a byte is enough to know.
    ascii: bool,
}

/// What a line may cost when it is held against a path: its wildcards, and where it may begin at any depth, its names.
pub(crate) fn cost(line: &str) -> usize {
    let deep = line.contains("**");
    line.bytes().filter(|b| b"*?[{".contains(b) || deep && *b == b'/').count()
}

impl Patterns {
    /// Adds a line; the later one wins. Empty ones and comments are none: whether it was a rule.
    ///
    /// # Errors
    /// Why it is no rule.
    pub(crate) fn add(&mut self, line: &str) -> Result<bool, String> {
        if line.starts_with('#') {
            return Ok(false);
        }
        let line = without_blanks(line);
        if line.trim().is_empty() {
            return Ok(false);
        }
        let (takes_back, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (at_top, line) = line.strip_prefix('/').map_or((false, line), |rest| (true, rest));
        let (only_folders, line) = match line.strip_suffix('/') {
            // An escaped slash is a slash.
            Some(rest) => (true, rest.strip_suffix('\\').unwrap_or(rest)),
            None => (false, line),
        };
        let anywhere = !at_top && !line.contains('/');
        let all: Vec<Vec<Part>> =
            written_out(line)?.iter().map(|text| parts(text, anywhere)).collect::<Result<_, _>>()?;
        let number = self.rules.len();
        self.rules.push(Rule { only_folders, takes_back });
        for parts in all {
            match parts.as_slice() {
                [Part::AnyDepth, Part::Name(name)] => {
                    self.by_name.entry(name.clone()).or_default().push(number);
                }
                names if names.iter().all(|part| matches!(part, Part::Name(_))) => {
                    let names = names.iter().filter_map(|part| match part {
                        Part::Name(name) => Some(&**name),
                        _ => None,
                    });
                    let path = names.collect::<Vec<_>>().join(&b'/');
                    self.by_path.entry(path.into()).or_default().push(number);
                }
                _ => self.others.push((number, parts)),
            }
        }
        Ok(true)
    }

    /// The last rule that fits a path, by its number from 0, and whether it takes something back.
    pub(crate) fn last(&self, path: &[u8], is_folder: bool) -> Option<(usize, bool)> {
        if path.is_empty() {
            // The folder itself has no name that a rule could be about.
            return None;
        }
        let applies = |number: &usize| is_folder || !self.rules[*number].only_folders;
        let newest = |found: Option<&Vec<usize>>| found?.iter().copied().rev().find(applies);
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        let known = newest(self.by_path.get(path)).max(newest(self.by_name.get(name)));
        let mut names: Vec<&[u8]> = Vec::new();
        let others = self.others.iter().rev().take_while(|(number, _)| Some(*number) > known);
        let other = others.filter(|(number, _)| applies(number)).find(|(_, parts)| match parts.as_slice() {
            [Part::AnyDepth, part] => part.fits(name),
            parts => {
                if names.is_empty() {
                    names.extend(path.split(|&b| b == b'/'));
                }
                fits(parts, &names)
            }
        });
        let number = other.map(|(number, _)| *number).or(known)?;
        Some((number, self.rules[number].takes_back))
    }
}

/// A line without its `{a,b}`: all that it stands for. An empty choice is none where there are others.
fn written_out(line: &str) -> Result<Vec<String>, String> {
    let mut todo: Vec<Vec<char>> = vec![line.chars().collect()];
    let mut done = Vec::new();
    while let Some(text) = todo.pop() {
        match group(&text)? {
            None => done.push(text.iter().collect()),
            Some(Group { from, choices, to }) => {
                let some = choices.iter().any(|choice| !choice.is_empty());
                for choice in choices.into_iter().filter(|choice| !(some && choice.is_empty())) {
                    todo.push([&text[..from], choice, &text[to..]].concat());
                }
            }
        }
        if todo.len() + done.len() > CHOICES_MAX {
            return Err(format!("more than {CHOICES_MAX} patterns when its choices are written out"));
        }
    }
    Ok(done)
}

/// Choices in a pattern: where they begin, what they are, where what comes after them begins.
struct Group<'a> {
    from: usize,
    choices: Vec<&'a [char]>,
    to: usize,
}

/// The first group of choices.
fn group(text: &[char]) -> Result<Option<Group<'_>>, String> {
    let (mut depth, mut from, mut begun) = (0usize, 0, 0);
    let mut choices = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            '\\' => at += 1,
            '[' => at = class(text, at).map_or(at, |(end, _)| end - 1),
            '{' => {
                if depth == 0 {
                    (from, begun) = (at, at + 1);
                }
                depth += 1;
            }
            ',' if depth == 1 => {
                choices.push(&text[begun..at]);
                begun = at + 1;
            }
            '}' => {
                depth = depth.checked_sub(1).ok_or("a } without its {")?;
                if depth == 0 {
                    choices.push(&text[begun..at]);
                    return Ok(Some(Group { from, choices, to: at + 1 }));
                }
            }
            _ => {}
        }
        at += 1;
    }
    if depth > 0 { Err("a { without its }".into()) } else { Ok(None) }
}

/// The class that begins at a `[`: where what comes after it begins, and its ranges or what is wrong with them. None where
/// it has no end: then the bracket is one.
fn class(text: &[char], at: usize) -> Option<(usize, Result<Class, String>)> {
    let negated = matches!(text.get(at + 1), Some('!' | '^'));
    let first = at + 1 + usize::from(negated);
    let (mut ranges, mut wrong) = (Vec::new(), None);
    // What a range may begin with.
    let mut before = None;
    let mut at = first;
    loop {
        match (text.get(at)?, before) {
            // A bracket that comes first is one of the characters.
            (']', _) if at > first => break,
            ('-', Some(from)) if *text.get(at + 1)? != ']' => {
                let (to, next) = literal(text, at + 1)?;
                if to < from {
                    wrong = Some(format!("[{from}-{to}] is the wrong way round"));
                }
                ranges.push((from, to));
                (before, at) = (None, next);
            }
            ('[', _) if text.get(at + 1) == Some(&':') => {
                let end = at + 2 + text[at + 2..].iter().position(|c| *c == ']')?;
                if end > at + 2 && text[end - 1] == ':' {
                    let name: String = text[at + 2..end - 1].iter().collect();
                    match CLASSES.iter().find(|(known, _)| *known == name) {
                        Some((_, has)) => ranges.extend_from_slice(has),
                        None => wrong = Some(format!("there is no class [:{name}:]")),
                    }
                    (before, at) = (None, end + 1);
                } else {
                    ranges.push(('[', '['));
                    (before, at) = (Some('['), at + 1);
                }
            }
            _ => {
                let (one, next) = literal(text, at)?;
                ranges.push((one, one));
                (before, at) = (Some(one), next);
            }
        }
    }
    let ascii = ranges.iter().all(|(from, to)| from.is_ascii() && to.is_ascii());
    Some((at + 1, wrong.map_or(Ok(Class { negated, ranges, ascii }), Err)))
}

/// Classes that have names, as in POSIX, of ASCII alone.
const CLASSES: [(&str, &[(char, char)]); 12] = [
    ("alnum", &[('0', '9'), ('A', 'Z'), ('a', 'z')]),
    ("alpha", &[('A', 'Z'), ('a', 'z')]),
    ("blank", &[(' ', ' '), ('\t', '\t')]),
    ("cntrl", &[('\0', '\x1f'), ('\x7f', '\x7f')]),
    ("digit", &[('0', '9')]),
    ("graph", &[('!', '~')]),
    ("lower", &[('a', 'z')]),
    ("print", &[(' ', '~')]),
    ("punct", &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
    ("space", &[('\t', '\r'), (' ', ' ')]),
    ("upper", &[('A', 'Z')]),
    ("xdigit", &[('0', '9'), ('A', 'F'), ('a', 'f')]),
];

/// A character, or the one behind a `\`; and where what comes after it begins.
fn literal(text: &[char], at: usize) -> Option<(char, usize)> {
    match text.get(at)? {
        '\\' => Some((*text.get(at + 1)?, at + 2)),
        one => Some((*one, at + 1)),
    }
}

/// A line without the blanks at its end, but for those that are escaped.
fn without_blanks(line: &str) -> &str {
    let (mut end, mut escaped) = (0, false);
    for (at, c) in line.char_indices() {
        if c != ' ' || escaped {
            end = at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    &line[..end]
}

/// Cuts a pattern without choices at its slashes.
fn parts(text: &str, anywhere: bool) -> Result<Vec<Part>, String> {
    let text: Vec<char> = text.chars().collect();
    let mut parts = if anywhere { vec![Part::AnyDepth] } else { Vec::new() };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let mut next = at + 1;
        let mut literal = text[at];
        let token = match text[at] {
            '/' => {
                parts.push(part(std::mem::take(&mut tokens)));
                at = next;
                continue;
            }
            '?' => Some(Token::Any),
            '*' => Some(Token::Star),
            '[' => match class(&text, at) {
                Some((end, class)) => {
                    next = end;
                    Some(Token::Class(Box::new(class?)))
                }
                None => None,
            },
            '\\' => {
                literal = *text.get(next).ok_or("a \\ with nothing after it")?;
                next += 1;
                None
            }
            _ => None,
        };
        match token {
            Some(token) => tokens.push(token),
            None => tokens.extend(literal.encode_utf8(&mut [0; 4]).bytes().map(Token::Byte)),
        }
        at = next;
    }
    parts.push(part(tokens));
    if parts.last() == Some(&Part::AnyDepth) {
        // What is in a folder, not the folder.
        parts.push(Part::Like([Token::Star].into()));
    }
    Ok(parts)
}

fn part(mut tokens: Vec<Token>) -> Part {
    if tokens.len() > 1 && tokens.iter().all(|token| *token == Token::Star) {
        return Part::AnyDepth;
    }
    tokens.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
    let bytes = tokens.iter().map(|token| if let Token::Byte(byte) = token { Some(*byte) } else { None });
    match bytes.collect::<Option<Vec<u8>>>() {
        Some(name) => Part::Name(name.into()),
        None => Part::Like(tokens.into()),
    }
}

impl Part {
    fn fits(&self, name: &[u8]) -> bool {
        match self {
            Self::AnyDepth => true,
            Self::Name(own) => **own == *name,
            Self::Like(tokens) => like(tokens, name),
        }
    }
}

fn fits(parts: &[Part], names: &[&[u8]]) -> bool {
    let (mut part, mut name) = (0, 0);
    // After the last `**`, and how many names that has taken.
    let mut back = None;
    loop {
        match parts.get(part) {
            None if name == names.len() => return true,
            Some(Part::AnyDepth) => {
                part += 1;
                back = Some((part, name));
                continue;
            }
            Some(here) if name < names.len() && here.fits(names[name]) => {
                (part, name) = (part + 1, name + 1);
                continue;
            }
            _ => {}
        }
        match &mut back {
            Some((after, taken)) if *taken < names.len() => {
                *taken += 1;
                (part, name) = (*after, *taken);
            }
            _ => return false,
        }
    }
}

fn like(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut back = None;
    loop {
        match tokens.get(token) {
            None if at == name.len() => return true,
            Some(Token::Star) => {
                token += 1;
                back = Some((token, at));
                continue;
            }
            Some(here) => {
                if let Some(taken) = here.takes(&name[at..]) {
                    (token, at) = (token + 1, at + taken);
                    continue;
                }
            }
            None => {}
        }
        match &mut back {
            Some((after, taken)) if *taken < name.len() => {
                *taken += 1;
                (token, at) = (*after, *taken);
            }
            _ => return false,
        }
    }
}

impl Token {
    /// How many bytes of what is left it takes, if it fits.
    fn takes(&self, rest: &[u8]) -> Option<usize> {
        let &first = rest.first()?;
        match self {
            Self::Byte(byte) => (first == *byte).then_some(1),
            Self::Any | Self::Star => Some(1),
            Self::Class(class) => class.takes(first, rest),
        }
    }
}

impl Class {
    fn takes(&self, first: u8, rest: &[u8]) -> Option<usize> {
        let has = |c: char| self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
        let (fits, taken) = if self.ascii || first.is_ascii() {
            (first.is_ascii() && has(char::from(first)), 1)
        } else {
            // A name need not be UTF-8; what is none of it is in no range.
            let chunk = rest[..rest.len().min(4)].utf8_chunks().next();
            match chunk.and_then(|chunk| chunk.valid().chars().next()) {
                Some(c) => (has(c), c.len_utf8()),
                None => (false, 1),
            }
        };
        (fits != self.negated).then_some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitting(lines: &[&str]) -> Patterns {
        let mut patterns = Patterns::default();
        for line in lines {
            patterns.add(line).expect(line);
        }
        patterns
    }

    #[test]
    fn a_pattern_fits_what_gitignore_says() {
        for (line, fits, others) in [
            ("a", &["a", "x/a", "x/y/a"][..], &["b", "a/b", "aa"][..]),
            ("/a", &["a"], &["x/a"]),
            ("a/b", &["a/b"], &["x/a/b", "a", "b"]),
            ("*.o", &[".o", "x.o", "d/x.o"], &["o", "x.oo", "x.o/y"]),
            ("a*b*c", &["abc", "axbxbxc", "x/aabbcc"], &["ab", "abcd", "a/bc"]),
            ("?", &["a", "x/y"], &["", "ab", "x/yz"]),
            ("**/a", &["a", "x/a", "x/y/a"], &["ab", "a/b"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "ab", "x/a/b"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab", "a/b/c"]),
            ("a/**/b/**/c", &["a/b/c", "a/b/x/b/y/c"], &["a/c", "a/b", "a/b/c/d"]),
            ("**", &["a", "a/b"], &[""]),
            ("/**", &["a", "a/b"], &[]),
            ("a**b", &["ab", "axb"], &["a/b"]),
            ("[ab]", &["a", "b"], &["c", "ab", "["]),
            ("[!ab]", &["c", "]"], &["a", "b", "cc"]),
            ("[^a-c]x", &["dx"], &["ax", "cx", "d"]),
            ("[]-]", &["]", "-"], &["[", "a"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[äö]x", &["äx", "d/öx"], &["ax", "üx", "x"]),
            ("[!ä]x", &["ax", "öx"], &["äx", "x"]),
            ("[α-ω]", &["α", "λ"], &["a", "Ω"]),
            ("a[b", &["a[b"], &["ab"]),
            (r"[\]x]a", &["]a", "xa"], &[r"\a", "a"]),
            (r"[\[-\]]", &["[", r"\", "]"], &["a", "-"]),
            ("[[:digit:]a-c]x", &["0x", "bx"], &["dx", ":x", "[x"]),
            ("[![:alpha:]]", &["1", "."], &["a", "Z"]),
            ("[[:]", &["[", ":"], &["a"]),
            ("a/***/b", &["a/b", "a/x/y/b"], &["ab"]),
            (r"a\  ", &["a "], &["a", "a  "]),
            (r"a\\ ", &[r"a\"], &[r"a\ "]),
            ("x[!a]y", &["xby"], &["x/y", "xay"]),
            (r"\*", &["*", "x/*"], &["a"]),
            (r"\!a", &["!a"], &["a"]),
            (r"\#a", &["#a"], &["a"]),
            (r"a\ ", &["a "], &["a"]),
            ("a  ", &["a"], &["a  "]),
            ("{a,b}.c", &["a.c", "x/b.c"], &["c", "{a,b}.c", "d.c"]),
            ("x{,y{1,2}}", &["xy1", "xy2"], &["x", "xy"]),
            ("{a/b,c}", &["a/b", "c"], &["x/c", "b"]),
            ("a,b", &["a,b"], &["a", "b"]),
            (r"\{a\}", &["{a}"], &["a"]),
            ("[{,}]", &["{", ",", "}"], &["a"]),
            ("/", &[], &["a", ""]),
        ] {
            let patterns = fitting(&[line]);
            for path in fits {
                assert!(patterns.last(path.as_bytes(), false).is_some(), "{line} fits {path}");
            }
            for path in others {
                assert!(patterns.last(path.as_bytes(), true).is_none(), "{line} does not fit {path}");
            }
        }
        let bytes = fitting(&["a?[!x]*z"]);
        assert!(bytes.last(b"a\xff\xfe\xfdz", false).is_some() && bytes.last(b"a\xffxz", false).is_none());
    }

    #[test]
    fn the_last_line_that_fits_counts() {
        let patterns = fitting(&["*.o", "# no rule", "", "!keep.o", "/d/keep.o", "logs/", "!*"]);
        for (path, folder, found) in [(&b"x.o"[..], false, Some((4, true))), (b"d", false, Some((4, true)))] {
            assert_eq!(patterns.last(path, folder), found);
        }
        let patterns = fitting(&["*.o", "!keep.o", "/d/keep.o", "logs/", "a?", "ab/"]);
        for (path, folder, found) in [
            (&b"x.o"[..], false, Some((0, false))),
            (b"d/x.o", true, Some((0, false))),
            (b"keep.o", false, Some((1, true))),
            (b"e/keep.o", false, Some((1, true))),
            (b"d/keep.o", false, Some((2, false))),
            (b"logs", false, None),
            (b"logs", true, Some((3, false))),
            (b"ab", false, Some((4, false))),
            (b"ab", true, Some((5, false))),
        ] {
            assert_eq!(patterns.last(path, folder), found, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        let mut patterns = Patterns::default();
        let many = "{a,b}".repeat(7);
        let deep = "{".repeat(1000);
        for line in ["[z-a]", "[[:letters:]]", "a\\", "{a", "a}", "{a{b}", "{[z-a],b}", &many, &deep] {
            assert!(patterns.add(line).is_err(), "{line}");
        }
        assert_eq!(patterns.last(b"a", false), None, "nothing of them counts");
        assert_eq!(patterns.add(&"{a,b}".repeat(6)), Ok(true));
        assert_eq!(patterns.last(b"ababba", false), Some((0, false)));
    }
}
