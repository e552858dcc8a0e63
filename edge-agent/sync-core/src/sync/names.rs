//! Names: the folder above a path, names of conflict copies and of changes kept aside (SYNC.md §3).

use alloc::format;
use alloc::vec::Vec;

use agent_proto::limits::{NAME_LEN_MAX, PATH_LEN_MAX};
use agent_proto::sync::Dot;
use event_schema::AgentId;

/// The folder above; none for what lies at the top.
pub(super) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&b| b == b'/').map(|slash| &path[..slash])
}

/// `name.conflict-<agent>-<n>.ext`: under which the loser of a conflict is kept. The same everywhere for the same
/// change. None if the name would be too long.
pub fn conflict_copy(path: &[u8], agent: AgentId, dot: Dot) -> Option<Vec<u8>> {
    let [a, b, c, d, ..] = agent.0;
    let [e, f, ..] = dot.replica.0;
    marked(path, &format!(".conflict-{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}{}", dot.counter))
}

/// The path that a conflict copy is of, if this is the name of one: the list of conflicts is the live rows with such
/// names.
pub fn conflict_copy_of(path: &[u8]) -> Option<Vec<u8>> {
    const MARK: &[u8] = b".conflict-";
    let name_at = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let at = name_at + path[name_at..].windows(MARK.len()).rposition(|w| w == MARK)?;
    let rest = &path[at + MARK.len()..];
    let is_hex = |bytes: &[u8]| bytes.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let (agent, rest) = rest.split_at_checked(8)?;
    let (dash, rest) = rest.split_at_checked(1)?;
    let (replica, rest) = rest.split_at_checked(4)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let extension = &rest[digits..];
    let good = is_hex(agent) && dash == b"-" && is_hex(replica) && digits > 0;
    (good && (extension.is_empty() || extension[0] == b'.')).then(|| [&path[..at], extension].concat())
}

/// `name.local-<n>.ext`: under which a read-only member keeps a change of its own.
pub fn kept_aside(path: &[u8], n: u64) -> Option<Vec<u8>> {
    marked(path, &format!(".local-{n:x}"))
}

fn marked(path: &[u8], mark: &str) -> Option<Vec<u8>> {
    let name_at = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let name = &path[name_at..];
    let stem = match name.iter().rposition(|&b| b == b'.') {
        Some(dot) if dot > 0 && name.len() - dot <= 16 => dot,
        _ => name.len(),
    };
    let marked = [&path[..name_at + stem], mark.as_bytes(), &name[stem..]].concat();
    (marked.len() <= PATH_LEN_MAX && marked.len() - name_at <= NAME_LEN_MAX).then_some(marked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_proto::sync::ReplicaId;

    #[test]
    fn copies_keep_folder_and_extension() {
        let dot = Dot { replica: ReplicaId([0xab; 8]), counter: 7 };
        let copy = |path: &[u8]| conflict_copy(path, AgentId([0x11; 16]), dot);
        assert_eq!(copy(b"a/b.txt").unwrap(), b"a/b.conflict-11111111-abab7.txt");
        assert_eq!(copy(b".profile").unwrap(), b".profile.conflict-11111111-abab7");
        assert_eq!(copy(&[b'x'; 250]), None);
        for path in [&b"a/b.txt"[..], b".profile", b"a.b/c"] {
            assert_eq!(conflict_copy_of(&copy(path).unwrap()).as_deref(), Some(path));
        }
        assert_eq!(conflict_copy_of(b"a.conflict-of-interest.txt"), None);
        assert_eq!(kept_aside(b"b.c", 255).unwrap(), b"b.local-ff.c");
        assert_eq!((parent(b"a/b/c"), parent(b"a")), (Some(&b"a/b"[..]), None));
    }
}
