//! What a program is made of, in CycloneDX 1.5 as JSON: for those who have to say whether what was found in some crate
//! concerns them.
//!
//! Which crates are linked in, cargo says (`cargo tree`, with the features that the program is built with, for its
//! target); their hashes are those of `Cargo.lock`. Crates that run only while it is built are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::table::Program;
use super::tree::Commit;
use crate::tools;
use crate::workspace::cargo;

/// A crate, by what cargo calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    name: String,
    version: String,
    /// It is one of ours: no registry has it.
    ours: bool,
}

impl Name {
    /// What others in the document call it by.
    fn reference(&self) -> String {
        let kind = if self.ours { "flotilla" } else { "pkg:cargo" };
        format!("{kind}/{}@{}", self.name, self.version)
    }
}

/// Crates with their licences, and what each is made of in turn.
#[derive(Default, Debug, PartialEq, Eq)]
struct Graph {
    licences: BTreeMap<Name, String>,
    uses: BTreeMap<Name, BTreeSet<Name>>,
}

/// What is not a crate, and linked in too: name, version, what it is.
pub(super) type Part = (&'static str, String, &'static str);

/// A program's file.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    /// The package that it is made of.
    pub(super) package: &'a str,
    pub(super) name: &'a str,
    pub(super) bytes: &'a [u8],
}

/// The document of a program, built from the commit that is laid out in `tree`.
pub(super) fn of(
    program: &Program,
    file: File<'_>,
    tree: &Path,
    commit: &Commit,
    parts: &[Part],
) -> Result<Vec<u8>> {
    let mut command = cargo();
    command.current_dir(tree).args(["tree", "--locked", "--package", file.package]);
    command.args(["--target", &program.triple]);
    command.args(["--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", "{p}\t{l}"]);
    let output = command.output().context("running cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let graph = graph(&String::from_utf8(output.stdout)?)?;
    let lock = std::fs::read_to_string(tree.join("Cargo.lock")).context("reading Cargo.lock")?;
    let made = document(program, file, commit, parts, &graph, &hashes(&lock)?)?;
    let mut text = serde_json::to_vec_pretty(&made)?;
    text.push(b'\n');
    Ok(text)
}

/// Reads what `cargo tree` says: a line for each crate with its depth before it, those that it uses below it and one
/// deeper. Of a crate that comes again cargo does not say again what it uses.
fn graph(text: &str) -> Result<Graph> {
    let mut graph = Graph::default();
    let mut above: Vec<Name> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let digits = line.bytes().take_while(u8::is_ascii_digit).count();
        let (depth, rest) = line.split_at(digits);
        let depth: usize = depth.parse().with_context(|| format!("no depth: {line}"))?;
        let (package, licence) = rest.split_once('\t').with_context(|| format!("no licence: {line}"))?;
        let mut words = package.split(' ');
        let name = words.next().filter(|name| !name.is_empty()).with_context(|| line.to_owned())?;
        let version =
            words.next().and_then(|word| word.strip_prefix('v')).with_context(|| line.to_owned())?;
        // What is here is named by its place, what a registry has is not.
        let ours = words.next().is_some_and(|word| word.starts_with("(/"));
        let name = Name { name: name.into(), version: version.into(), ours };
        ensure!(depth <= above.len(), "it is too deep: {line}");
        above.truncate(depth);
        if let Some(user) = above.last() {
            graph.uses.entry(user.clone()).or_default().insert(name.clone());
        }
        let licence = licence.trim_end_matches("(*)").trim();
        graph.licences.insert(name.clone(), licence.replace('/', " OR "));
        graph.uses.entry(name.clone()).or_default();
        above.push(name);
    }
    ensure!(!graph.licences.is_empty(), "cargo tree says nothing");
    Ok(graph)
}

/// SHA-256 of what the registry gave, by name and version.
fn hashes(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = lock.parse().context("Cargo.lock")?;
    let packages = lock.get("package").and_then(|p| p.as_array()).context("Cargo.lock has no packages")?;
    let text = |row: &toml::Value, key: &str| row.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    Ok(packages
        .iter()
        .filter_map(|row| Some(((text(row, "name")?, text(row, "version")?), text(row, "checksum")?)))
        .collect())
}

fn document(
    program: &Program,
    file: File<'_>,
    commit: &Commit,
    parts: &[Part],
    graph: &Graph,
    hashes: &BTreeMap<(String, String), String>,
) -> Result<Value> {
    let own = graph.licences.keys().find(|name| name.ours && name.name == file.package);
    let own = own.context("the program's own package is not in it")?;
    let mut components = Vec::new();
    for (name, licence) in graph.licences.iter().filter(|(name, _)| *name != own) {
        let mut component = json!({
            "type": "library",
            "bom-ref": name.reference(),
            "name": name.name,
            "version": name.version,
        });
        if !licence.is_empty() {
            component["licenses"] = json!([{ "expression": licence }]);
        }
        if !name.ours {
            let hash = hashes.get(&(name.name.clone(), name.version.clone()));
            let hash = hash.with_context(|| format!("Cargo.lock has no hash of {name:?}"))?;
            component["purl"] = json!(name.reference());
            component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
        }
        components.push(component);
    }
    let mut dependencies = Vec::new();
    for (name, uses) in &graph.uses {
        let mut uses: Vec<String> = uses.iter().map(Name::reference).collect();
        if name == own {
            uses.extend(parts.iter().map(|(part, ..)| (*part).to_owned()));
        }
        dependencies.push(json!({ "ref": name.reference(), "dependsOn": uses }));
    }
    for (name, version, what) in parts {
        components.push(json!({
            "type": "library",
            "bom-ref": name,
            "name": name,
            "version": version,
            "description": what,
        }));
        dependencies.push(json!({ "ref": name, "dependsOn": [] }));
    }
    let mut made = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": commit.stamp,
            "component": {
                "type": "application",
                "bom-ref": own.reference(),
                "name": file.name,
                "version": own.version,
                "licenses": [{ "expression": graph.licences[own] }],
                "hashes": [{ "alg": "SHA-256", "content": tools::sha256_of(file.bytes) }],
                "properties": [
                    { "name": "flotilla:target", "value": program.triple },
                    { "name": "flotilla:commit", "value": commit.id },
                ],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    // Of its content, so that the same program has the same document.
    made["serialNumber"] =
        json!(format!("urn:uuid:{}", uuid(&tools::sha256_of(&serde_json::to_vec(&made)?))));
    Ok(made)
}

/// A UUID of version 8 (RFC 9562 §5.8) from the first digits of a hash.
fn uuid(hash: &str) -> String {
    let variant = ["8", "9", "a", "b"][usize::from(hash.as_bytes()[15]) % 4];
    format!("{}-{}-8{}-{variant}{}-{}", &hash[..8], &hash[8..12], &hash[12..15], &hash[16..19], &hash[19..31])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::table::Table;
    use crate::workspace::root;

    const AGENT: File<'_> = File { package: "agent", name: "flotilla-agent", bytes: b"a program" };

    fn name(name: &str, version: &str, ours: bool) -> Name {
        Name { name: name.into(), version: version.into(), ours }
    }

    #[test]
    fn a_tree_is_read_with_what_comes_again() {
        let text = "0agent v0.1.0 (/tree/agent)\tMIT OR Apache-2.0\n1a v1.0.0\tMIT/Apache-2.0\n2b v2.0.0\tMIT\n\
                    1own v0.1.0 (/tree/own)\tMIT OR Apache-2.0\n2a v1.0.0\tMIT/Apache-2.0 (*)\n1b v3.0.0+x\t\n";
        let graph = graph(text).expect("read");
        let (agent, own) = (name("agent", "0.1.0", true), name("own", "0.1.0", true));
        let (a, b2, b3) = (name("a", "1.0.0", false), name("b", "2.0.0", false), name("b", "3.0.0+x", false));
        let uses = |of: &Name| graph.uses[of].iter().cloned().collect::<Vec<_>>();
        assert_eq!(uses(&agent), [a.clone(), b3.clone(), own.clone()]);
        assert_eq!(uses(&own), std::slice::from_ref(&a));
        assert_eq!(uses(&a), std::slice::from_ref(&b2), "not forgotten where it comes again");
        assert_eq!(graph.licences[&a], "MIT OR Apache-2.0");
        assert_eq!(graph.licences[&b3], "");
        for bad in
            ["", "a v1\tMIT", "1a v1\tMIT", "0a v1", "0a 1\tMIT", "0 v1\tMIT", "0a v1 (/x)\tMIT\n2b v1\tMIT"]
        {
            assert!(super::graph(bad).is_err(), "{bad:?}");
        }
        // A crate without a hash is one that nobody vouches for.
        let table = Table::of(&root()).expect("a table");
        let commit = Commit::newest(&root()).expect("a commit");
        assert!(document(&table.programs[0], AGENT, &commit, &[], &graph, &BTreeMap::new()).is_err());
    }

    #[test]
    fn the_agents_document_names_what_is_linked_in_and_nothing_else() {
        let table = Table::of(&root()).expect("a table");
        let program = table.programs.iter().find(|p| p.name == "armv5").expect("a row");
        let commit = Commit::newest(&root()).expect("a commit");
        let parts = [("musl", "1".to_owned(), "libc")];
        let made = of(program, AGENT, &root(), &commit, &parts).expect("made");
        assert_eq!(made, of(program, AGENT, &root(), &commit, &parts).expect("made"), "twice the same");
        let made: Value = serde_json::from_slice(&made).expect("JSON");
        let list = made["components"].as_array().expect("components");
        let all: BTreeSet<&str> = list.iter().filter_map(|c| c["bom-ref"].as_str()).collect();
        assert_eq!(all.len(), list.len(), "each once");
        let has = |crate_: &str| list.iter().any(|c| c["name"] == crate_);
        for linked in ["rustls", "ring", "tokio", "redb", "utp2", "sync-core", "musl"] {
            assert!(has(linked), "{linked}");
        }
        for other in ["proptest", "tempfile", "control", "serde_derive", "cc", "windows-sys", "agent"] {
            assert!(!has(other), "{other}");
        }
        for component in list {
            let registry = component["bom-ref"].as_str().expect("a name").starts_with("pkg:cargo/");
            assert_eq!(registry, component["purl"].is_string(), "{component}");
            assert_eq!(registry, component["hashes"][0]["content"].as_str().is_some_and(|h| h.len() == 64));
        }
        let own = made["metadata"]["component"]["bom-ref"].as_str().expect("a name");
        for row in made["dependencies"].as_array().expect("dependencies") {
            for named in row["dependsOn"].as_array().expect("a list").iter().chain([&row["ref"]]) {
                let named = named.as_str().expect("a name");
                assert!(all.contains(named) || named == own, "{named}");
            }
        }
        let serial = made["serialNumber"].as_str().expect("a number");
        assert!(serial.len() == 45 && serial.as_bytes()[23] == b'8', "{serial}");
    }
}
