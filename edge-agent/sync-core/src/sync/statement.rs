//! Statements: what they sign, which of several wins, which make others obsolete (SYNC.md §2, §3).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;

use agent_proto::limits::PATH_LEN_MAX;
use agent_proto::sync::{
    ALIKE_MAX, Dot, FILE_MAX, Head, META_MAX, ROW_WEIGHT_MAX, ReplicaId, STATEMENTS_MAX, Statement,
    VERSION_MAX, Value,
};
use event_schema::{AgentId, Domain, RunId, Signature, Signed, encode};
use sha2::{Digest, Sha256};

use super::version;

/// Signs and checks for the machine, so that the key stays with whoever keeps it.
pub trait Notary {
    /// Signs with this agent's key.
    fn sign(&self, bytes: &[u8]) -> Signature;
    /// Whether the signature is the key's over these bytes.
    fn holds(&self, key: &[u8; 32], bytes: &[u8], signature: &Signature) -> bool;
}

/// Ed25519 in the domain *synchronization*.
pub struct KeyNotary(pub Box<ed25519_dalek::SigningKey>);

impl Notary for KeyNotary {
    fn sign(&self, bytes: &[u8]) -> Signature {
        Signed::sign(Domain::Synchronization, bytes.to_vec(), &self.0).signature
    }

    fn holds(&self, key: &[u8; 32], bytes: &[u8], signature: &Signature) -> bool {
        let signed = Signed { bytes: bytes.to_vec(), signature: *signature };
        signed.verify(Domain::Synchronization, key).is_ok()
    }
}

/// The id of one life of an agent's index.
pub fn replica_id(run: RunId, agent: AgentId, incarnation: u64) -> ReplicaId {
    let hash = Sha256::new()
        .chain_update(b"flotilla replica\0")
        .chain_update(run.0)
        .chain_update(agent.0)
        .chain_update(incarnation.to_le_bytes())
        .finalize();
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    ReplicaId(id)
}

/// What the author of a statement signs.
pub fn statement_bytes(run: RunId, path: &[u8], s: &Statement) -> Vec<u8> {
    encode(&(1u8, run, path, s.author, &s.version, s.depth, &s.value))
}

/// What an agent signs as its head.
pub fn head_bytes(run: RunId, head: &Head) -> Vec<u8> {
    encode(&(2u8, run, head.key, head.incarnation, head.counter, &head.lives))
}

/// The change that a statement is.
pub fn dot(s: &Statement) -> Dot {
    Dot { replica: s.author, counter: version::of(&s.version, s.author) }
}

/// Whether two values differ in metadata alone.
pub fn same_content(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Deleted, Value::Deleted) | (Value::Folder { .. }, Value::Folder { .. }) => true,
        (Value::File { root: a, size: x, .. }, Value::File { root: b, size: y, .. }) => (a, x) == (b, y),
        (Value::Link { target: a, .. }, Value::Link { target: b, .. }) => a == b,
        _ => false,
    }
}

/// The metadata of what is there.
pub(super) fn meta(value: &Value) -> &[u8] {
    match value {
        Value::Deleted => &[],
        Value::Link { meta, .. } | Value::File { meta, .. } | Value::Folder { meta, .. } => meta,
    }
}

/// Whether both are folders, and of the first alone nobody knows which metadata it has.
pub(super) fn lacks_meta(one: &Value, other: &Value) -> bool {
    matches!((one, other), (Value::Folder { meta: one, .. }, Value::Folder { meta: other, .. })
        if one.is_empty() && !other.is_empty())
}

fn class(value: &Value) -> u8 {
    match value {
        Value::Deleted => 0,
        Value::Link { .. } | Value::File { .. } => 1,
        Value::Folder { implied: true, .. } => 2,
        Value::Folder { implied: false, .. } => 3,
    }
}

/// Which of two concurrent statements wins, everywhere the same: folders over files over deletions, then the one
/// that stands on more statements, then by author.
pub(super) fn rank(a: &Statement, b: &Statement) -> Ordering {
    class(&a.value)
        .cmp(&class(&b.value))
        .then(a.depth.cmp(&b.depth))
        .then(dot(a).cmp(&dot(b)))
        .then_with(|| (&a.version, &a.value).cmp(&(&b.version, &b.value)))
}

/// Whether a value is one that all members take.
pub(super) fn is_fit(value: &Value) -> bool {
    let sound = match value {
        Value::File { size, .. } => *size <= FILE_MAX,
        Value::Link { target, .. } => target.len() <= PATH_LEN_MAX && !target.contains(&0),
        Value::Deleted | Value::Folder { .. } => true,
    };
    sound && meta(value).len() <= META_MAX
}

/// Whether a statement is within all limits; nobody tells, and nobody takes, one that is not.
pub(super) fn is_sound(s: &Statement) -> bool {
    is_fit(&s.value)
        && s.version.len() <= VERSION_MAX
        && version::is_well_formed(&s.version)
        && dot(s).counter > 0
        && (1..=depth_max(&s.version)).contains(&s.depth)
}

/// Each statement that one stands on is a change in its version.
pub(super) fn depth_max(version: &[Dot]) -> u64 {
    version.iter().fold(0, |sum: u64, d| sum.saturating_add(d.counter))
}

/// Whether `a` was made on top of `b`. The depth keeps made-up versions from going in circles.
pub(super) fn replaces(a: &Statement, b: &Statement) -> bool {
    dot(a) != dot(b) && a.depth > b.depth && version::includes(&a.version, dot(b))
}

/// Adds a statement to those of a path, winner first; false if that changes nothing.
pub(super) fn insert(statements: &mut Vec<Statement>, new: Statement) -> bool {
    let new_dot = dot(&new);
    if statements.iter().any(|s| replaces(s, &new)) {
        return false;
    }
    if let Some(same) = statements.iter().position(|s| dot(s) == new_dot) {
        // Said twice under one number: somebody's fault, but all must choose the same.
        if order(&statements[same], &new) != Ordering::Less {
            return false;
        }
        statements.remove(same);
    }
    statements.retain(|s| !replaces(&new, s));
    let at = statements.partition_point(|s| order(s, &new) == Ordering::Greater);
    statements.insert(at, new);
    limit(statements);
    statements.iter().any(|s| dot(s) == new_dot)
}

/// The total order: the winner is the greatest, and the signature decides between what is the same in all else.
fn order(a: &Statement, b: &Statement) -> Ordering {
    rank(a, b).then_with(|| (a.signature.0, a.signature.1).cmp(&(b.signature.0, b.signature.1)))
}

/// What the least may be left out of (SYNC.md §2): of each content some, of all together as much as a message holds.
fn limit(statements: &mut Vec<Statement>) {
    let weigh = |s: &Statement| {
        let target = if let Value::Link { target, .. } = &s.value { target.len() } else { 0 };
        192 + 16 * s.version.len() + meta(&s.value).len() + target
    };
    if statements.len() <= ALIKE_MAX.min(STATEMENTS_MAX)
        && statements.iter().map(weigh).sum::<usize>() <= ROW_WEIGHT_MAX
    {
        return;
    }
    let mut weight = 0;
    let mut kept: Vec<Statement> = Vec::new();
    for statement in statements.drain(..) {
        let alike = kept.iter().filter(|k| same_content(&k.value, &statement.value)).count();
        if kept.len() == STATEMENTS_MAX || weight + weigh(&statement) > ROW_WEIGHT_MAX {
            break;
        }
        if alike < ALIKE_MAX {
            weight += weigh(&statement);
            kept.push(statement);
        }
    }
    *statements = kept;
}

/// How two heads of one replica go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The first says nothing that the second does not.
    Older,
    /// The second says nothing that the first does not.
    Newer,
    /// They are of two copies of one index, that was one up to this counter.
    Forked(u64),
}

/// Compares two heads of one replica.
pub(super) fn kinship(a: &Head, b: &Head) -> Kinship {
    let newer = |newer: bool| if newer { Kinship::Newer } else { Kinship::Older };
    // The last life that both had.
    let common = a.lives.iter().enumerate().rev().find_map(|(i, life)| {
        b.lives.iter().position(|other| other == life).map(|j| (a.lives.get(i + 1), b.lives.get(j + 1)))
    });
    let shared = match common {
        Some((None, None)) => return newer(a.counter >= b.counter),
        Some((x, y)) => x.into_iter().chain(y).map(|life| life.since).min().unwrap_or(0),
        None => {
            let began = |head: &Head| head.lives.first().map_or(head.counter, |life| life.since);
            // One may be from so long before that its lives are not told any more.
            if began(a) >= b.counter || began(b) >= a.counter {
                return newer(a.counter >= b.counter);
            }
            began(a).min(began(b))
        }
    };
    match a.counter.min(b.counter) <= shared {
        true => newer(a.counter >= b.counter),
        false => Kinship::Forked(shared),
    }
}

/// Whether a head is one that an honest agent signs.
pub(super) fn is_head(head: &Head) -> bool {
    head.counter <= agent_proto::sync::COUNTER_MAX
        && head.lives.len() <= agent_proto::sync::LIVES_MAX
        && head.lives.windows(2).all(|w| w[0].since <= w[1].since)
        && head.lives.last().is_none_or(|life| life.since <= head.counter)
        && (head.counter == 0 || !head.lives.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_proto::sync::Life;
    use alloc::vec;

    fn of(author: u8, version: &[(u8, u64)], depth: u64, value: Value) -> Statement {
        let version =
            version.iter().map(|&(r, counter)| Dot { replica: ReplicaId([r; 8]), counter }).collect();
        let signature = Signature([0; 32], [0; 32]);
        Statement { author: ReplicaId([author; 8]), version, depth, value, signature }
    }

    fn file(root: u8) -> Value {
        Value::File { size: 1, root: [root; 32], meta: Vec::new() }
    }

    #[test]
    fn whatever_the_order_the_same_statements_stay() {
        let folder = Value::Folder { meta: Vec::new(), implied: false };
        let all = [
            of(1, &[(1, 1)], 1, file(1)),
            of(2, &[(1, 1), (2, 1)], 2, file(2)),
            of(3, &[(1, 1), (3, 1)], 2, Value::Deleted),
            of(1, &[(1, 2)], 2, file(3)),
            of(3, &[(1, 1), (2, 1), (3, 2)], 3, file(4)),
            of(4, &[(4, 1)], 1, folder),
            // Said under a number that was used.
            of(4, &[(4, 1)], 1, file(9)),
        ];
        let expected = [5, 4, 3].map(|i: usize| all[i].clone());
        // All 5040 orders.
        for n in 0..5040 {
            let (mut left, mut order, mut n) = (all.to_vec(), Vec::new(), n);
            while !left.is_empty() {
                let choices = left.len();
                order.push(left.remove(n % choices));
                n /= choices;
            }
            let mut kept = vec![];
            order.into_iter().for_each(|s| _ = insert(&mut kept, s));
            assert_eq!(kept, expected);
        }
    }

    #[test]
    fn heads_tell_copies_of_an_index_apart() {
        let head = |counter, lives: &[(u32, u64)]| Head {
            key: [0; 32],
            incarnation: 1,
            counter,
            lives: lives.iter().map(|&(id, since)| Life { id, since }).collect(),
            signature: Signature([0; 32], [0; 32]),
        };
        let (older, newer) = (Kinship::Older, Kinship::Newer);
        let cases = [
            (head(5, &[(1, 0)]), head(7, &[(1, 0)]), older),
            (head(7, &[(1, 0)]), head(9, &[(1, 0), (2, 7)]), older),
            (head(6, &[(1, 0)]), head(7, &[(1, 0), (2, 7)]), older),
            // Restored to a copy made at 7, when it had told 9.
            (head(9, &[(1, 0)]), head(8, &[(1, 0), (2, 7)]), Kinship::Forked(7)),
            (head(9, &[(1, 0)]), head(30, &[(1, 0), (2, 7), (3, 20)]), Kinship::Forked(7)),
            (head(9, &[(1, 0), (2, 5)]), head(9, &[(1, 0), (3, 7)]), Kinship::Forked(5)),
            // The copy has not told anything new yet.
            (head(9, &[(1, 0), (2, 7)]), head(7, &[(1, 0)]), newer),
            // What they had in common is not told any more.
            (head(9, &[(1, 0)]), head(90, &[(7, 40), (8, 60)]), older),
            (head(50, &[(1, 0)]), head(90, &[(7, 40), (8, 60)]), Kinship::Forked(0)),
            (head(0, &[]), head(3, &[(1, 0)]), older),
        ];
        for (a, b, expected) in cases {
            assert_eq!(kinship(&a, &b), expected, "{a:?} {b:?}");
            let back =
                [older, newer].iter().position(|k| *k == expected).map_or(expected, |i| [newer, older][i]);
            assert_eq!(kinship(&b, &a), back, "{b:?} {a:?}");
        }
    }

    #[test]
    fn made_up_versions_go_in_no_circles_and_rows_stay_small() {
        // Each claims to stand on the other; and three in a ring. Whatever the order, the same stay.
        let ring = [
            of(1, &[(1, 1), (2, 1)], 2, file(1)),
            of(2, &[(2, 1), (3, 1)], 2, file(2)),
            of(3, &[(1, 1), (3, 1)], 2, file(3)),
        ];
        let order = |order: [usize; 3]| {
            let mut kept = vec![];
            order.iter().for_each(|i| _ = insert(&mut kept, ring[*i].clone()));
            kept
        };
        let expected = order([0, 1, 2]);
        for other in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(order(other), expected);
        }
        // A hundred members with one content, a hundred with as many: of each order the same few.
        let many = |i: u8| of(i, &[(i, 1)], 1, if i < 100 { file(0) } else { file(i) });
        let (mut up, mut down) = (vec![], vec![]);
        (1..200).for_each(|i| _ = insert(&mut up, many(i)));
        (1..200).rev().for_each(|i| _ = insert(&mut down, many(i)));
        assert_eq!(up, down);
        assert_eq!((up.len(), up[0].author.0[0]), (STATEMENTS_MAX, 199));
        let mut alike = vec![];
        (1..100).for_each(|i| _ = insert(&mut alike, many(i)));
        assert_eq!(alike.len(), ALIKE_MAX);
        // As heavy as can be: the row still fits into a message.
        let mut heavy = vec![];
        for i in 1..200 {
            let meta = vec![i; META_MAX];
            insert(&mut heavy, of(i, &[(i, 1)], 1, Value::Folder { meta, implied: false }));
        }
        assert!(heavy.len() == 3 && encode(&heavy).len() < ROW_WEIGHT_MAX, "{}", heavy.len());
    }

    #[test]
    fn there_is_always_a_greater_depth() {
        let deepest = of(1, &[(1, 1 << 53)], 1 << 53, file(1));
        assert!(is_sound(&deepest) && !is_sound(&Statement { depth: (1 << 53) + 1, ..deepest.clone() }));
        let next = of(2, &[(1, 1 << 53), (2, 1)], deepest.depth + 1, file(2));
        assert!(is_sound(&next) && replaces(&next, &deepest));
        assert!(!is_sound(&of(
            1,
            &[(1, 1)],
            1,
            Value::File { size: FILE_MAX + 1, root: [0; 32], meta: vec![] }
        )));
    }

    #[test]
    fn a_change_on_top_of_the_winner_wins_over_the_same_losers() {
        let loser = of(9, &[(9, 50)], 3, file(1));
        let winner = of(1, &[(1, 1)], 4, file(2));
        let next = of(2, &[(1, 1), (2, 7)], 5, file(3));
        assert_eq!((rank(&winner, &loser), rank(&next, &loser)), (Ordering::Greater, Ordering::Greater));
    }

    #[test]
    #[ignore = "measures"]
    fn what_signatures_cost() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let notary = KeyNotary(Box::new(key));
        let bytes =
            statement_bytes(RunId([1; 16]), b"some/folder/with a file", &of(1, &[(1, 1)], 1, file(1)));
        let (n, began) = (5000, std::time::Instant::now());
        let signature = (0..n).fold(None, |_, _| Some(notary.sign(&bytes))).unwrap();
        let (signed, began) = (began.elapsed(), std::time::Instant::now());
        assert!((0..n).all(|_| notary.holds(&public, &bytes, &signature)));
        std::println!("to sign {:?}, to verify {:?}", signed / n, began.elapsed() / n);
    }

    #[test]
    fn signatures_hold_for_their_path_and_run_alone() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let notary = KeyNotary(Box::new(key));
        let s = of(1, &[(1, 1)], 1, file(1));
        let signature = notary.sign(&statement_bytes(RunId([1; 16]), b"a", &s));
        let holds = |run, path: &[u8], s: &Statement| {
            notary.holds(&public, &statement_bytes(RunId([run; 16]), path, s), &signature)
        };
        assert!(holds(1, b"a", &s));
        assert!(!holds(2, b"a", &s) && !holds(1, b"b", &s));
        assert!(!holds(1, b"a", &Statement { depth: 2, ..s.clone() }));
        assert!(!notary.holds(&[3; 32], &statement_bytes(RunId([1; 16]), b"a", &s), &signature));
    }
}
