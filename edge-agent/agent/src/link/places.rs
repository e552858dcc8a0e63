//! Which gateway is tried next (`edge-agent/PROTOCOL.md` §2.5): the one that worked, then the others in an order of
//! this agent's own, so that the agents of a gateway that died spread over those that are left.

use agent_proto::limits::GATEWAYS_MAX;

use super::backoff::random;
use crate::config::Gateway;

/// One gateway: its text, and parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: String,
    pub(crate) gateway: Gateway,
}

/// Every gateway that is known, and the one whose turn it is.
#[derive(Debug)]
pub(crate) struct Places {
    /// Never empty.
    known: Vec<Place>,
    current: usize,
    /// Failures since one worked.
    failed: usize,
}

impl Places {
    /// `first` is tried first; texts that are no `HOST:PORT` and repeated ones are passed over.
    pub(crate) fn new(first: Place, others: &[String]) -> Self {
        let mut places = Self { known: vec![first], current: 0, failed: 0 };
        places.add(others);
        places
    }

    fn add(&mut self, others: &[String]) {
        let mut fresh: Vec<Place> = Vec::new();
        for text in others {
            let room = self.known.len() + fresh.len() < GATEWAYS_MAX;
            if let (true, Ok(gateway)) = (room, Gateway::parse(text))
                && !self.known.iter().chain(&fresh).any(|place| place.gateway == gateway)
            {
                // In a random place among the new ones.
                let at = (random() * (fresh.len() + 1) as f64) as usize;
                fresh.insert(at.min(fresh.len()), Place { text: text.clone(), gateway });
            }
        }
        self.known.extend(fresh);
    }

    /// The one to be tried.
    pub(crate) fn current(&self) -> &Place {
        &self.known[self.current]
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The current one works.
    pub(crate) fn works(&mut self) {
        self.failed = 0;
    }

    /// The current one does not (any more): it is the next one's turn. Returns whether all have failed since one
    /// worked.
    pub(crate) fn fails(&mut self) -> bool {
        self.failed += 1;
        self.current = (self.current + 1) % self.known.len();
        self.failed.is_multiple_of(self.known.len())
    }

    /// How often all have failed since one worked.
    pub(crate) fn rounds(&self) -> u32 {
        u32::try_from(self.failed / self.known.len()).unwrap_or(u32::MAX)
    }

    /// The service told its gateways: those it did not name are forgotten, save the one in use and `kept`, which the
    /// owner named. Returns whether that is news.
    pub(crate) fn learn(&mut self, told: &[String], kept: &[String]) -> bool {
        let before: Vec<Gateway> = self.known.iter().map(|place| place.gateway.clone()).collect();
        let current = self.current().gateway.clone();
        let named: Vec<Gateway> =
            told.iter().chain(kept).filter_map(|text| Gateway::parse(text).ok()).collect();
        self.known.retain(|place| place.gateway == current || named.contains(&place.gateway));
        self.current = self.known.iter().position(|place| place.gateway == current).unwrap_or(0);
        self.add(told);
        self.add(kept);
        before.len() != self.known.len() || self.known.iter().any(|place| !before.contains(&place.gateway))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    fn place(text: &str) -> Place {
        Place { text: text.into(), gateway: Gateway::parse(text).expect("good") }
    }

    fn known(places: &Places) -> Vec<String> {
        let mut known: Vec<_> = places.known.iter().map(|place| place.text.clone()).collect();
        known.sort();
        known
    }

    #[test]
    fn each_has_its_turn() {
        let mut places = Places::new(place("a:1"), &texts(&["b:1", "nonsense", "a:1", "c:1", "b:1"]));
        assert_eq!((places.len(), places.current().text.as_str()), (3, "a:1"));
        let mut seen = vec![places.current().text.clone()];
        assert!(!places.fails());
        seen.push(places.current().text.clone());
        assert!(!places.fails());
        seen.push(places.current().text.clone());
        assert_eq!(places.rounds(), 0);
        assert!(places.fails(), "all have failed");
        assert_eq!(places.rounds(), 1);
        seen.sort();
        assert_eq!(seen, ["a:1", "b:1", "c:1"]);
        assert!(!places.fails());
        places.works();
        assert!(!places.fails() && !places.fails() && places.fails());
        assert!(Places::new(place("a:1"), &[]).fails(), "the only one is all");
    }

    #[test]
    fn what_is_told_replaces_what_was_known() {
        let mut places = Places::new(place("a:1"), &texts(&["b:1", "own:1"]));
        assert!(places.learn(&texts(&["c:1", "b:1"]), &texts(&["own:1"])));
        assert_eq!(known(&places), ["a:1", "b:1", "c:1", "own:1"], "the one in use stays");
        assert_eq!(places.current().text, "a:1");
        assert!(!places.learn(&texts(&["b:1", "c:1"]), &texts(&["own:1"])), "no news");
        places.fails();
        places.learn(&texts(&["b:1", "c:1"]), &texts(&["own:1"]));
        assert!(!known(&places).contains(&"a:1".to_owned()));
        let many: Vec<String> = (1..100).map(|port| format!("h:{port}")).collect();
        places.learn(&many, &[]);
        assert!(places.len() <= GATEWAYS_MAX);
    }

    #[test]
    fn agents_spread() {
        let others = texts(&["b:1", "c:1", "d:1"]);
        let second = || {
            let mut places = Places::new(place("a:1"), &others);
            places.fails();
            places.current().text.clone()
        };
        let seen: std::collections::BTreeSet<_> = (0..200).map(|_| second()).collect();
        assert_eq!(seen.len(), 3);
    }
}
