//! Which versions of a source are kept at one storage agent, and which go.
//!
//! The answer follows from what stands there and the policy alone. It does not depend on the time or on how often it was
//! asked before: thinning after every version and thinning once a year end with the same versions, and a clock that is
//! wrong removes nothing. *Newest* is by the names of versions.

use std::collections::{BTreeMap, BTreeSet};

use event_schema::Keep;

use super::version::VersionName;
use crate::Rejection;
use crate::limits::{KEEP_COUNT_MAX, KEEP_DAYS_MAX};

/// Whether this can be a job's policy.
///
/// # Errors
/// If it has no rule, or one beyond its limit.
pub fn check(keep: &Keep) -> Result<(), Rejection> {
    let Keep { last, hourly, daily, weekly, monthly, yearly, within_days } = *keep;
    let counts = [last, hourly, daily, weekly, monthly, yearly];
    if within_days == 0 && counts == [0; 6] {
        return Err(Rejection::Invalid(
            "a backup keeps something: say how many versions of the last, of hours, days, weeks, months or years, or \
             within how many days"
                .into(),
        ));
    }
    if counts.iter().any(|count| *count > KEEP_COUNT_MAX) || within_days > KEEP_DAYS_MAX {
        return Err(Rejection::Invalid(format!(
            "a rule keeps at most {KEEP_COUNT_MAX} versions, or those within {KEEP_DAYS_MAX} days"
        )));
    }
    Ok(())
}

/// Which of the versions that stand at a storage agent are to go, oldest first; of each it is told whether it counts: it is
/// complete, and not suspicious.
///
/// The newest that counts stays whatever the policy says. Those that do not count take no place of one that does: they
/// stay until there is a later one that counts, as far as the rules keep them among themselves, and the newest of them in
/// any case.
pub fn surplus(keep: &Keep, standing: &BTreeMap<VersionName, bool>) -> Vec<VersionName> {
    let that = |wanted: bool| standing.iter().rev().filter(move |(_, counts)| **counts == wanted);
    let counting: Vec<VersionName> = that(true).map(|(name, _)| *name).collect();
    let newest = counting.first().copied();
    let later: Vec<VersionName> = that(false)
        .map(|(name, _)| *name)
        .take_while(|name| newest.is_none_or(|newest| *name > newest))
        .collect();
    let (kept, kept_later) = (by_rules(keep, &counting), by_rules(keep, &later));
    standing.keys().filter(|name| !kept.contains(name) && !kept_later.contains(name)).copied().collect()
}

/// What the rules keep of these, which are the newest first; that one in any case.
fn by_rules(keep: &Keep, names: &[VersionName]) -> BTreeSet<VersionName> {
    let Some(newest) = names.first() else { return BTreeSet::new() };
    let all = || names.iter().copied();
    let mut kept = BTreeSet::from([*newest]);
    kept.extend(all().take(places(keep.last)));
    let reach = time::Duration::days(i64::from(keep.within_days));
    kept.extend(all().take_while(|name| keep.within_days > 0 && newest.time() - name.time() <= reach));
    for (period, count) in [
        (Period::Hour, keep.hourly),
        (Period::Day, keep.daily),
        (Period::Week, keep.weekly),
        (Period::Month, keep.monthly),
        (Period::Year, keep.yearly),
    ] {
        let mut before = None;
        let newest_of_each = all().filter(|name| {
            let this = Some(period.of(*name));
            std::mem::replace(&mut before, this) != this
        });
        kept.extend(newest_of_each.take(places(count)));
    }
    kept
}

fn places(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[derive(Clone, Copy)]
enum Period {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// Which one a version is of; those of one kind follow each other in time.
    fn of(self, name: VersionName) -> i64 {
        /// From the Monday before 1970-01-01, which was a Thursday.
        const DAYS_TO_MONDAY: i64 = 3;
        let at = name.time();
        let day = at.unix_timestamp().div_euclid(86_400);
        match self {
            Self::Hour => at.unix_timestamp().div_euclid(3_600),
            Self::Day => day,
            Self::Week => (day + DAYS_TO_MONDAY).div_euclid(7),
            Self::Month => i64::from(at.year()) * 12 + i64::from(u8::from(at.month())),
            Self::Year => i64::from(at.year()),
        }
    }
}

#[cfg(test)]
mod tests {
    use event_schema::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> VersionName {
        text.parse().expect("the name of a version")
    }

    /// What is left of versions of these names; `!` behind one says that it is not complete.
    fn left(keep: Keep, names: &[&str]) -> Vec<String> {
        let mut standing = names
            .iter()
            .map(|text| (name(text.trim_end_matches('!')), !text.ends_with('!')))
            .collect::<BTreeMap<_, _>>();
        let surplus = surplus(&keep, &standing);
        assert!(surplus.is_sorted(), "oldest first");
        for name in surplus {
            assert!(standing.remove(&name).is_some(), "{name} stands there");
        }
        standing.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let names = [
            "2024-12-30T120000Z", // Monday; the first week of 2025 begins
            "2025-01-05T120000Z", // Sunday of that week
            "2025-01-06T120000Z",
            "2025-02-01T080000Z",
            "2025-02-01T083000Z",
            "2025-02-01T083000Z-2",
            "2025-02-01T090000Z",
        ];
        for (keep, expected) in [
            (Keep { last: 1, ..Keep::NOTHING }, &[6][..]),
            (Keep { last: 3, ..Keep::NOTHING }, &[4, 5, 6]),
            (Keep { last: 100, ..Keep::NOTHING }, &[0, 1, 2, 3, 4, 5, 6]),
            (Keep { hourly: 2, ..Keep::NOTHING }, &[5, 6]),
            (Keep { hourly: 3, ..Keep::NOTHING }, &[2, 5, 6]),
            (Keep { daily: 2, ..Keep::NOTHING }, &[2, 6]),
            (Keep { weekly: 3, ..Keep::NOTHING }, &[1, 2, 6]),
            (Keep { monthly: 2, ..Keep::NOTHING }, &[2, 6]),
            (Keep { monthly: 3, ..Keep::NOTHING }, &[0, 2, 6]),
            (Keep { yearly: 9, ..Keep::NOTHING }, &[0, 6]),
            (Keep { within_days: 1, ..Keep::NOTHING }, &[3, 4, 5, 6]),
            // Days of 24 hours before the newest one, whatever the date.
            (Keep { within_days: 26, ..Keep::NOTHING }, &[2, 3, 4, 5, 6]),
            (Keep { within_days: 25, ..Keep::NOTHING }, &[3, 4, 5, 6]),
            (Keep { last: 2, yearly: 2, ..Keep::NOTHING }, &[0, 5, 6]),
        ] {
            let expected: Vec<&str> = expected.iter().map(|nth| names[*nth]).collect();
            assert_eq!(left(keep, &names), expected, "{keep:?}");
        }
    }

    #[test]
    fn what_is_not_complete_stays_until_a_later_one_is() {
        let one = Keep { last: 1, ..Keep::NOTHING };
        let (old, torn, new) = ("2026-01-01T000000Z", "2026-01-02T000000Z!", "2026-01-03T000000Z");
        assert_eq!(left(one, &[torn]), ["2026-01-02T000000Z"], "nothing is better");
        assert_eq!(left(one, &[old, torn]), [old, "2026-01-02T000000Z"], "it takes nobody's place");
        assert_eq!(left(one, &[old, torn, new]), [new]);
        assert_eq!(left(Keep { last: 2, ..one }, &[old, torn, new]), [old, new]);
        // A file that always changes: what is not complete is thinned too, by the same rules.
        let (later, last) = ("2026-01-02T060000Z!", "2026-01-04T000000Z!");
        assert_eq!(left(one, &[old, torn, later, last]), [old, "2026-01-04T000000Z"]);
        let daily = Keep { daily: 2, ..Keep::NOTHING };
        assert_eq!(left(daily, &[torn, later, last]), ["2026-01-02T060000Z", "2026-01-04T000000Z"]);
    }

    #[test]
    fn a_policy_has_a_rule_within_limits() {
        assert!(check(&Keep::NOTHING).is_err());
        assert!(check(&Keep::default()).is_ok());
        assert!(check(&Keep { within_days: 1, ..Keep::NOTHING }).is_ok());
        assert!(check(&Keep { within_days: KEEP_DAYS_MAX + 1, ..Keep::NOTHING }).is_err());
        assert!(check(&Keep { yearly: KEEP_COUNT_MAX + 1, ..Keep::default() }).is_err());
    }

    fn keeps() -> impl Strategy<Value = Keep> {
        let some = || prop_oneof![2 => Just(0u32), 3 => 1..5u32];
        (some(), some(), some(), some(), some(), some(), some()).prop_map(
            |(last, hourly, daily, weekly, monthly, yearly, within_days)| Keep {
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
                within_days,
            },
        )
    }

    /// Versions in the order of their names, some minutes to some months apart, one in five not complete.
    fn versions() -> impl Strategy<Value = Vec<(VersionName, bool)>> {
        let gap = prop_oneof![3 => 1..90u64, 3 => 60..3_000u64, 1 => 1_000..100_000u64];
        prop::collection::vec((gap, prop::bool::weighted(0.8)), 1..60).prop_map(|gaps| {
            let mut minute = 29_000_000;
            let versions = gaps.into_iter().map(|(gap, complete)| {
                minute += gap;
                (VersionName::at(Timestamp(minute * 60_000)).expect("in our days"), complete)
            });
            versions.collect()
        })
    }

    fn thin(keep: Keep, standing: &mut BTreeMap<VersionName, bool>) {
        for name in surplus(&keep, standing) {
            standing.remove(&name);
        }
    }

    proptest! {
        #[test]
        fn when_it_was_asked_makes_no_difference(
            keep in keeps(), versions in versions(), asked in prop::collection::vec(0..3u8, 60)
        ) {
            let mut at_once: BTreeMap<_, _> = versions.iter().copied().collect();
            thin(keep, &mut at_once);
            let mut on_the_way = BTreeMap::new();
            for ((name, complete), times) in versions.iter().zip(asked) {
                on_the_way.insert(*name, *complete);
                for _ in 0..times {
                    thin(keep, &mut on_the_way);
                }
            }
            thin(keep, &mut on_the_way);
            prop_assert_eq!(on_the_way, at_once);
        }

        #[test]
        fn the_last_complete_version_stays_and_asking_again_changes_nothing(
            keep in keeps(), mut versions in versions(), seed in any::<prop::sample::Index>()
        ) {
            // In any order: clocks of services go back, and names with them.
            let middle = seed.index(versions.len());
            versions.rotate_left(middle);
            let mut standing = BTreeMap::new();
            for (name, complete) in versions {
                standing.insert(name, complete);
                let newest = standing.iter().rev().find(|(_, complete)| **complete).map(|(name, _)| *name);
                let last = *standing.keys().next_back().expect("one stands");
                thin(keep, &mut standing);
                if let Some(newest) = newest {
                    prop_assert_eq!(standing.get(&newest), Some(&true));
                }
                prop_assert!(standing.contains_key(&last), "what was made last stays");
                prop_assert_eq!(surplus(&keep, &standing), vec![]);
            }
        }

        #[test]
        fn another_rule_keeps_no_less(keep in keeps(), versions in versions(), more in keeps()) {
            let standing: BTreeMap<_, _> = versions.into_iter().collect();
            let both = Keep {
                last: keep.last.max(more.last),
                hourly: keep.hourly.max(more.hourly),
                daily: keep.daily.max(more.daily),
                weekly: keep.weekly.max(more.weekly),
                monthly: keep.monthly.max(more.monthly),
                yearly: keep.yearly.max(more.yearly),
                within_days: keep.within_days.max(more.within_days),
            };
            let fewer = surplus(&both, &standing);
            let surplus = surplus(&keep, &standing);
            prop_assert!(fewer.iter().all(|name| surplus.contains(name)));
        }
    }
}
