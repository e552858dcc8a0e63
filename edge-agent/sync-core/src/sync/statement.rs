//! Statements: what they sign, which of several wins, which make others obsolete (SYNC.md §2, §3).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;

use agent_proto::sync::{Dot, Head, ReplicaId, Statement, Value};
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
    encode(&(2u8, run, head.key, head.incarnation, head.counter))
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

/// Adds a statement to those of a path, winner first; false if it is known or obsolete.
pub(super) fn insert(statements: &mut Vec<Statement>, new: Statement) -> bool {
    let new_dot = dot(&new);
    if let Some(same) = statements.iter().position(|s| dot(s) == new_dot) {
        // Said twice under one number: somebody's fault, but all must choose the same.
        if rank(&statements[same], &new) != Ordering::Less {
            return false;
        }
        statements.remove(same);
    } else if statements.iter().any(|s| version::includes(&s.version, new_dot)) {
        return false;
    }
    statements.retain(|s| !version::includes(&new.version, dot(s)));
    let at = statements.partition_point(|s| rank(s, &new) == Ordering::Greater);
    statements.insert(at, new);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn of(author: u8, version: &[(u8, u64)], depth: u32, value: Value) -> Statement {
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
