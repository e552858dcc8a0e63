//! Grids of scenarios and the tables made of them, kept in `snapshots/` so that a change of the transport
//! shows as a difference of lines.
//!
//! A [`Case`] is one scenario with the columns that name it and the questions asked of its outcome; each
//! answer is a line, and every line holds what is demanded beside what was reached. Nothing here reads or
//! writes files or starts threads; the `utp2 sim sweep` command does.

mod grids;

use core::fmt;

use crate::measure::Outcome;
use crate::protocol::Protocol;
use crate::scenario::Scenario;

/// A set of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Slow links, done within a minute: run by the tests.
    Ci,
    /// {20 Mbit/s, 1, 5, 10 Gbit/s} × {1, 50, 200, 500 ms} × {0, 0.1, 1, 5 %}, queue of half a BDP.
    Full,
    /// Several flows, flows beside CUBIC.
    Fairness,
    /// Bursts, reordering, small and deep queues, paths that change, whole transfers.
    Special,
}

impl Grid {
    /// Its cases for a protocol, in order.
    #[must_use]
    pub fn cases(self, protocol: Protocol) -> Vec<Case> {
        match self {
            Self::Ci => grids::ci(protocol),
            Self::Full => grids::full(protocol),
            Self::Fairness => grids::fairness(protocol),
            Self::Special => grids::special(protocol),
        }
    }

    /// The first line of its table.
    #[must_use]
    pub const fn header(self) -> &'static str {
        match self {
            Self::Ci | Self::Full => {
                "protocol\trate_mbit\trtt_ms\tloss_pct\tqueue_bdp\tutilization_pct\tself_loss_pct\
                 \tresent_over_loss_pct\trtts_to_90\tholds"
            }
            Self::Fairness | Self::Special => "protocol\tcase\twhat\tdemanded\treached\tholds",
        }
    }
}

/// What an answer has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Demand {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// Between these.
    Between(f64, f64),
    /// Anything: the figure is told, not judged.
    Any,
}

impl Demand {
    /// Whether a figure meets it; one that is missing meets nothing but [`Demand::Any`].
    #[must_use]
    pub fn holds(self, figure: Option<f64>) -> bool {
        match (self, figure) {
            (Self::Any, _) => true,
            (_, None) => false,
            (Self::AtLeast(least), Some(x)) => x >= least,
            (Self::AtMost(most), Some(x)) => x <= most,
            (Self::Between(least, most), Some(x)) => (least..=most).contains(&x),
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(x) => write!(f, "≥ {x}"),
            Self::AtMost(x) => write!(f, "≤ {x}"),
            Self::Between(a, b) => write!(f, "{a}–{b}"),
            Self::Any => f.write_str("—"),
        }
    }
}

type Figure = Box<dyn Fn(&Scenario, &Outcome) -> Option<f64> + Send + Sync>;

/// One thing asked of an outcome.
pub struct Question {
    /// What, with its unit.
    pub what: String,
    /// What it has to be.
    pub demand: Demand,
    /// Digits behind the point.
    pub digits: usize,
    figure: Figure,
}

impl Question {
    fn new(
        what: &str,
        demand: Demand,
        digits: usize,
        figure: impl Fn(&Scenario, &Outcome) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        Self { what: what.into(), demand, digits, figure: Box::new(figure) }
    }
}

/// How a case's answers are laid out.
enum Layout {
    /// One line with all of them.
    Cell,
    /// A line for each.
    Lines,
}

/// One scenario of a grid.
pub struct Case {
    /// The columns that name it.
    pub key: Vec<String>,
    /// What is run.
    pub scenario: Scenario,
    /// Whether the flows know the path from an earlier connection.
    pub remembered: bool,
    questions: Vec<Question>,
    layout: Layout,
}

impl Case {
    /// Runs it.
    #[must_use]
    pub fn run(&self) -> Outcome {
        if self.remembered { self.scenario.clone().remembering().run() } else { self.scenario.run() }
    }

    /// The lines of the table for an outcome, columns parted by tabs, without line ends.
    #[must_use]
    pub fn lines(&self, outcome: &Outcome) -> Vec<String> {
        let key = self.key.join("\t");
        let fault = outcome.flows.iter().find_map(|f| f.fault.clone());
        if let (false, Some(fault)) = (outcome.intact, fault) {
            let fault = fault.replace(['\t', '\n'], " ");
            return vec![match self.layout {
                Layout::Cell => format!("{key}\t-\t-\t-\t-\tno: {fault}"),
                Layout::Lines => format!("{key}\tintact\tyes\tno\tno: {fault}"),
            }];
        }
        let answers = self.questions.iter().map(|q| {
            let figure = (q.figure)(&self.scenario, outcome);
            let text = figure.map_or("never".into(), |x| format!("{x:.*}", q.digits));
            (q, text, q.demand.holds(figure))
        });
        match self.layout {
            Layout::Cell => {
                let answers: Vec<_> = answers.collect();
                let texts: Vec<&str> = answers.iter().map(|(_, text, _)| text.as_str()).collect();
                let wrong: Vec<&str> =
                    answers.iter().filter(|(_, _, ok)| !ok).map(|(q, _, _)| q.what.as_str()).collect();
                let judged = answers.iter().any(|(q, _, _)| q.demand != Demand::Any);
                let holds = match (judged, wrong.is_empty()) {
                    (false, _) => "-".to_owned(),
                    (true, true) => "yes".to_owned(),
                    (true, false) => format!("no: {}", wrong.join(", ")),
                };
                vec![format!("{key}\t{}\t{holds}", texts.join("\t"))]
            }
            Layout::Lines => answers
                .map(|(q, text, ok)| {
                    let holds = if q.demand == Demand::Any {
                        "-"
                    } else if ok {
                        "yes"
                    } else {
                        "no"
                    };
                    format!("{key}\t{}\t{}\t{text}\t{holds}", q.what, q.demand)
                })
                .collect(),
        }
    }

    /// Whether a line of a table belongs to this case.
    #[must_use]
    pub fn owns(&self, line: &str) -> bool {
        let mut columns = line.split('\t');
        self.key.iter().all(|k| columns.next() == Some(k))
    }
}

/// What became different between a kept table and a new one, line by line: `-` was, `+` is. Empty if
/// nothing did.
#[must_use]
pub fn difference(kept: &str, new: &[String]) -> Vec<String> {
    let kept: Vec<&str> = kept.lines().collect();
    let gone = kept.iter().filter(|k| !new.iter().any(|n| n == *k)).map(|k| format!("- {k}"));
    let came = new.iter().filter(|n| !kept.contains(&n.as_str())).map(|n| format!("+ {n}"));
    let mut all: Vec<String> = gone.chain(came).collect();
    // A line's old and new answers next to each other.
    all.sort_by(|a, b| a[2..].cmp(&b[2..]));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_held_against_figures() {
        assert!(Demand::AtLeast(0.97).holds(Some(0.97)) && !Demand::AtLeast(0.97).holds(Some(0.96)));
        assert!(Demand::AtMost(12.0).holds(Some(3.0)) && !Demand::AtMost(12.0).holds(None));
        assert!(
            Demand::Between(25.0, 75.0).holds(Some(30.0)) && !Demand::Between(25.0, 75.0).holds(Some(80.0))
        );
        assert!(Demand::Any.holds(None));
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_its_table_the_right_columns() {
        for grid in [Grid::Ci, Grid::Full, Grid::Fairness, Grid::Special] {
            let cases = grid.cases(Protocol::Utp2);
            let mut keys: Vec<_> = cases.iter().map(|c| c.key.join("\t")).collect();
            let columns = if matches!(grid, Grid::Ci | Grid::Full) { 5 } else { 2 };
            assert!(keys.len() > 5 && cases.iter().all(|c| c.key.len() == columns));
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), cases.len(), "{grid:?}");
        }
        assert_eq!(Grid::Full.cases(Protocol::Utp2).len(), 64);
    }

    #[test]
    fn lines_have_as_many_columns_as_the_header() {
        for (grid, wanted) in [(Grid::Ci, 1), (Grid::Special, 2)] {
            let mut case = grid.cases(Protocol::Cubic).swap_remove(0);
            let small = Scenario::new(5_000_000, core::time::Duration::from_millis(20), 0.0, 0);
            case.scenario = small.for_seconds(2);
            case.scenario.flows[0].protocol = Protocol::Cubic;
            let lines = case.lines(&case.run());
            assert!(lines.len() >= wanted && lines.iter().all(|l| case.owns(l)), "{lines:?}");
            let columns = grid.header().split('\t').count();
            assert!(lines.iter().all(|l| l.split('\t').count() == columns), "{lines:?}");
        }
    }

    #[test]
    fn differences_are_told_line_by_line() {
        let new = ["a\t1".to_owned(), "b\t3".into(), "d\t4".into()];
        assert_eq!(difference("a\t1\nb\t2\nc\t3\n", &new), ["- b\t2", "+ b\t3", "- c\t3", "+ d\t4"]);
        assert!(difference("a\t1\nb\t3\nd\t4\n", &new).is_empty());
    }
}
