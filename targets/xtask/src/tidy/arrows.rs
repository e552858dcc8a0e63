//! The arrows of ARCHITECTURE.md, held against the manifests.
//!
//! Owns the layers, the list of crates that do no input or output, and where `control` and `edge-agent` may meet.
//! What a crate does with an allowed dependency is not seen here; `sources` looks at some of that.

use std::collections::BTreeSet;

use crate::checks::NO_STD;
use crate::workspace::{Kind, Member, Workspace};

/// From the ground up. A crate depends on layers below its own, or on its own layer; never on one above.
const LAYERS: &[&[&str]] = &[
    &["event-schema", "event-audit", "timebase", "units", "packages"],
    &["utp2", "tracker-proto", "agent-proto", "sync-core", "device-core", "carry", "control-core"],
    &["utp2-tokio", "utp2-sim", "event-log", "event-log-nats", "folder-index"],
    PROGRAMS,
    &["e2e", "wan"],
    &["replicas", "engine"],
];

/// Programs talk over the network, not through each other's types.
const PROGRAMS: &[&str] = &["agent", "tracker", "control", "utp2-tool"];

/// Crates for tests only: any crate may have them under `[dev-dependencies]`, only tests may ship them. The `utp2`
/// tool may too: simulating is one of the things it does.
const FOR_TESTS: &[&str] = &["utp2-sim", "utp2-tool", "e2e", "wan", "replicas", "engine"];

/// Outside the layers: it drives the binaries from outside.
const OUTSIDE: &[&str] = &["xtask"];

/// What it may depend on: no part of the product.
const NO_PRODUCT: &[&str] = &["packages"];

/// No socket, file, clock, thread or unseeded randomness.
pub(crate) const PURE: &[&str] = &[
    "event-schema",
    "timebase",
    "units",
    "utp2",
    "tracker-proto",
    "agent-proto",
    "sync-core",
    "device-core",
    "carry",
    "control-core",
];

/// What would bring input, output, clocks or threads into a pure crate.
const IMPURE: &[&str] = &[
    "async-nats",
    "axum",
    "cap-std",
    "getrandom",
    "libc",
    "quinn-udp",
    "redb",
    "reqwest",
    "rustix",
    "rustls",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-rustls",
    "tokio-stream",
    "tracing-subscriber",
    "ureq",
    "walkdir",
];

/// Where the two sides meet. `timebase` is ground that everything stands on.
const MEETING: &[&str] = &["agent-proto", "event-audit", "event-schema", "timebase"];

pub(crate) fn check(workspace: &Workspace, faults: &mut Vec<String>) {
    for member in &workspace.members {
        layers(workspace, member, faults);
        purity(workspace, member, faults);
    }
    meeting(workspace, faults);
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

fn layers(workspace: &Workspace, member: &Member, faults: &mut Vec<String>) {
    let place = format!("{}/Cargo.toml", member.folder);
    let outside = OUTSIDE.contains(&member.name.as_str());
    let own = layer(&member.name);
    if own.is_none() && !outside {
        faults.push(format!("{place}: {} has no layer; give it one in tidy/arrows.rs", member.name));
    }
    for dependency in member.dependencies.iter().filter(|d| workspace.member(&d.name).is_some()) {
        let name = dependency.name.as_str();
        if outside && NO_PRODUCT.contains(&name) {
            continue;
        }
        if outside {
            faults.push(format!("{place}: {} must not depend on {name}, a product crate", member.name));
            continue;
        }
        let (Some(own), Some(other)) = (own, layer(name)) else { continue };
        let for_tests = FOR_TESTS.contains(&name);
        let programs = PROGRAMS.contains(&member.name.as_str()) && PROGRAMS.contains(&name);
        let test_crate = FOR_TESTS.contains(&member.name.as_str());
        let allowed = match dependency.kind {
            Kind::Dev => (for_tests && name != "e2e") || (other <= own && !programs),
            Kind::Normal | Kind::Build => other <= own && !programs && (!for_tests || test_crate),
        };
        if !allowed {
            faults.push(format!(
                "{place}: {} → {name} ({:?}) is against the arrows of ARCHITECTURE.md",
                member.name, dependency.kind
            ));
        }
    }
}

fn purity(workspace: &Workspace, member: &Member, faults: &mut Vec<String>) {
    if !PURE.contains(&member.name.as_str()) {
        return;
    }
    let place = format!("{}/Cargo.toml", member.folder);
    for dependency in member.dependencies.iter().filter(|d| d.kind == Kind::Normal) {
        let name = dependency.name.as_str();
        if IMPURE.contains(&name) {
            faults.push(format!("{place}: {} is sans-IO and must not depend on {name}", member.name));
        }
        let ours = workspace.member(name).is_some();
        if NO_STD.contains(&member.name.as_str()) && !ours && dependency.default_features {
            faults.push(format!(
                "{place}: {} is no_std; take {name} with default-features = false, in the workspace's table",
                member.name
            ));
        }
        if NO_STD.contains(&member.name.as_str()) && ours && !NO_STD.contains(&name) {
            faults.push(format!("{place}: {} is no_std and {name} is not", member.name));
        }
    }
}

fn meeting(workspace: &Workspace, faults: &mut Vec<String>) {
    let side = |folder: &str| {
        let roots = workspace.members.iter().filter(|m| m.folder.starts_with(folder));
        roots.fold(BTreeSet::new(), |mut reached, member| {
            reach(workspace, member, &mut reached);
            reached
        })
    };
    let (control, agent) = (side("control/"), side("edge-agent/"));
    for name in control.intersection(&agent).filter(|name| !MEETING.contains(name)) {
        faults.push(format!("control and edge-agent both reach {name}; they may meet only in {MEETING:?}"));
    }
}

/// The members that `member` ships: itself and what it needs outside tests.
fn reach<'w>(workspace: &'w Workspace, member: &'w Member, reached: &mut BTreeSet<&'w str>) {
    if !reached.insert(&member.name) {
        return;
    }
    for dependency in member.dependencies.iter().filter(|d| d.kind == Kind::Normal) {
        if let Some(next) = workspace.member(&dependency.name) {
            reach(workspace, next, reached);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::workspace::Dependency;

    /// A workspace from lines such as `edge-agent/agent: sync-core, dev utp2-sim, std tokio`.
    fn workspace(lines: &str) -> Workspace {
        let members = lines
            .lines()
            .map(|line| {
                let (folder, dependencies) = line.trim().split_once(':').unwrap();
                let dependencies = dependencies.split(',').map(str::trim).filter(|d| !d.is_empty());
                Member {
                    name: folder.rsplit('/').next().unwrap().to_owned(),
                    folder: folder.to_owned(),
                    dependencies: dependencies
                        .map(|text| {
                            let (mark, name) = text.split_once(' ').unwrap_or(("", text));
                            let kind = if mark == "dev" { Kind::Dev } else { Kind::Normal };
                            Dependency { name: name.to_owned(), kind, default_features: mark == "std" }
                        })
                        .collect(),
                }
            })
            .collect();
        Workspace { root: PathBuf::new(), target: PathBuf::new(), members }
    }

    #[track_caller]
    fn expect(lines: &str, fault: Option<&str>) {
        let mut faults = Vec::new();
        check(&workspace(lines), &mut faults);
        match fault {
            None => assert!(faults.is_empty(), "{faults:?}"),
            Some(part) => assert!(faults.iter().any(|f| f.contains(part)), "{faults:?} lack {part:?}"),
        }
    }

    #[test]
    fn arrows_point_down() {
        expect("events/event-schema:\nevents/event-log: event-schema", None);
        expect("events/event-log: \nevents/event-schema: event-log", Some("event-schema → event-log"));
        expect("edge-agent/agent:\ntracker/tracker: agent", Some("tracker → agent"));
        expect("edge-agent/agent:\ntracker/tracker: dev agent", Some("tracker → agent"));
        expect("transport/utp2:\ntransport/utp2-sim: utp2\ntests/e2e: utp2-sim", None);
    }

    #[test]
    fn test_crates_are_for_tests() {
        expect("transport/utp2: dev utp2-sim\ntransport/utp2-sim: utp2", None);
        expect("transport/utp2-sim:\nedge-agent/agent: utp2-sim", Some("agent → utp2-sim"));
        expect("tests/e2e:\nedge-agent/agent: dev e2e", Some("agent → e2e"));
    }

    #[test]
    fn xtask_stays_outside() {
        expect("transport/timebase:\ntargets/xtask: timebase", Some("a product crate"));
        expect("targets/xtask: std clap", None);
        expect("targets/packages:\ntargets/xtask: packages", None);
    }

    #[test]
    fn a_new_crate_is_given_a_layer() {
        expect("events/event-archive:", Some("has no layer"));
    }

    #[test]
    fn pure_crates_stay_pure() {
        expect("control/control-core: std tokio", Some("sans-IO"));
        expect("control/control-core: dev tokio", None);
        expect("transport/utp2: std serde", Some("default-features = false"));
        expect("transport/utp2: serde", None);
        expect("edge-agent/sync-core: control-core\ncontrol/control-core:", Some("no_std"));
    }

    #[test]
    fn control_and_agents_meet_in_their_contract() {
        let contract = "events/event-schema:\nedge-agent/agent-proto: event-schema\n";
        let both = "control/control: agent-proto\nedge-agent/agent: agent-proto";
        expect(&format!("{contract}{both}"), None);
        expect("edge-agent/sync-core:\ncontrol/control: sync-core", Some("both reach sync-core"));
    }
}
