//! Stream names as subjects and back. A stream is one token behind the prefix: NATS gives `.` a meaning, so it is
//! written as `=2e`; everything else that a stream name may hold stands for itself. `=` is not allowed in a stream
//! name, so no two names share a subject.

use event_log::StreamName;

/// A dot within a token.
const DOT: &str = "=2e";

/// The subject of a stream.
pub(crate) fn encode(prefix: &str, stream: &StreamName) -> String {
    format!("{prefix}.{}", stream.as_str().replace('.', DOT))
}

/// The stream of a subject; `None` if [`encode`] never makes this subject.
pub(crate) fn decode(prefix: &str, subject: &str) -> Option<StreamName> {
    let token = subject.strip_prefix(prefix)?.strip_prefix('.')?;
    if token.contains('.') {
        return None;
    }
    StreamName::new(token.replace(DOT, ".")).ok()
}

/// All subjects of a log.
pub(crate) fn wildcard(prefix: &str) -> String {
    format!("{prefix}.>")
}

/// Whether a text can be what subjects begin with.
pub(crate) fn is_prefix(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    text.len() <= 64 && text.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_share_no_subject() {
        let names = ["a", "a.b", "a/b", "..", "/", "A_z-9", "a..b", "2e", "-2e", &".".repeat(200)];
        let mut seen = std::collections::HashSet::new();
        for name in names {
            let name = StreamName::new(name).unwrap();
            let subject = encode("flotilla.ev", &name);
            assert_eq!(decode("flotilla.ev", &subject).as_ref(), Some(&name), "{subject}");
            assert_eq!(subject.matches('.').count(), 2, "{subject} is one token behind the prefix");
            assert!(seen.insert(subject));
        }
    }

    #[test]
    fn other_subjects_are_none_of_ours() {
        for subject in
            ["", "flotilla.ev", "flotilla.ev.", "flotilla.evx.a", "flotilla.ev.a.b", "flotilla.ev.a=3d", "x"]
        {
            assert_eq!(decode("flotilla.ev", subject), None, "{subject:?}");
        }
    }

    #[test]
    fn prefixes_are_plain() {
        for (text, good) in [
            ("flotilla.ev", true),
            ("a", true),
            ("", false),
            ("a.", false),
            ("a..b", false),
            ("a.*", false),
            (">", false),
            ("a b", false),
            ("$JS.x", false),
        ] {
            assert_eq!(is_prefix(text), good, "{text:?}");
        }
    }
}
