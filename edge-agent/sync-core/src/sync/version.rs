//! Versions: which changes of which replicas something includes (SYNC.md §2). A sorted list of dots.

use alloc::vec::Vec;

use agent_proto::sync::{Dot, ReplicaId};

/// How far `version` goes for a replica; 0: nothing of it.
pub fn of(version: &[Dot], replica: ReplicaId) -> u64 {
    version.binary_search_by_key(&replica, |d| d.replica).map_or(0, |i| version[i].counter)
}

/// Whether it includes a change.
pub fn includes(version: &[Dot], dot: Dot) -> bool {
    of(version, dot.replica) >= dot.counter
}

/// Whether `a` includes everything that `b` does.
pub fn covers(a: &[Dot], b: &[Dot]) -> bool {
    b.iter().all(|&dot| includes(a, dot))
}

/// Makes it include a change and all earlier ones of the same replica.
pub fn add(version: &mut Vec<Dot>, dot: Dot) {
    match version.binary_search_by_key(&dot.replica, |d| d.replica) {
        Ok(i) => version[i].counter = version[i].counter.max(dot.counter),
        Err(i) => version.insert(i, dot),
    }
}

/// Makes `a` include what `b` does; says whether that was anything new.
pub fn join(a: &mut Vec<Dot>, b: &[Dot]) -> bool {
    let mut grew = false;
    for &dot in b {
        grew |= !includes(a, dot);
        add(a, dot);
    }
    grew
}

/// Whether the list is one: sorted, every replica once, counters from 1.
pub(super) fn is_well_formed(version: &[Dot]) -> bool {
    version.iter().all(|d| d.counter > 0 && d.counter <= agent_proto::sync::COUNTER_MAX)
        && version.windows(2).all(|w| w[0].replica < w[1].replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn dot(replica: u8, counter: u64) -> Dot {
        Dot { replica: ReplicaId([replica; 8]), counter }
    }

    #[test]
    fn versions_are_a_lattice() {
        let mut a = vec![dot(1, 5), dot(3, 1)];
        let b = vec![dot(1, 4), dot(2, 7)];
        assert!(!covers(&a, &b) && !covers(&b, &a));
        assert!(join(&mut a, &b));
        assert_eq!(a, [dot(1, 5), dot(2, 7), dot(3, 1)]);
        assert!(covers(&a, &b) && !join(&mut a, &b) && is_well_formed(&a));
        assert!(!is_well_formed(&[dot(2, 1), dot(1, 1)]) && !is_well_formed(&[dot(1, 0)]));
    }
}
