//! How the folders of a consolidation's sources are named: a template, and what the sources' tags make of it.
//!
//! Names between `/`; in a name `%SRC:TAG%` stands for the value of the source's tag and `%%` for a percent sign.
//! `AGENT_NAME` and `AGENT_ID` are every agent's. A tag's value comes from whoever runs the agent, so it may be one name or
//! part of one and nothing else: what would lead elsewhere is refused, never bent, since two values bent into one would
//! put two sources into one folder.

use event_schema::AgentId;

use crate::agent::Agent;
use crate::limits::{SUBFOLDER_LEN_MAX, SUBFOLDER_NAMES_MAX};
use crate::{Rejection, text};

/// The template of jobs that do not say: a folder for each source, by its name.
pub const DEFAULT: &str = "/%SRC:AGENT_NAME%";

/// Bytes of one name of a folder: NAME_MAX of Linux.
const NAME_LEN_MAX: usize = 255;

/// The folder in every job's folder that is not content.
const RESERVED: &str = ".flotilla";

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Tag(String),
}

/// A template taken apart: names, each of its parts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Vec<Part>>);

impl Template {
    /// Takes a template apart. An empty one, or `/`, is no folder at all: fit for a single source.
    pub(crate) fn parse(template: &str) -> Result<Self, Rejection> {
        let invalid = |why: String| Err(Rejection::Invalid(format!("the sub-folder {template:?}: {why}")));
        if template.len() > SUBFOLDER_LEN_MAX {
            return Err(Rejection::Invalid(format!("a sub-folder has at most {SUBFOLDER_LEN_MAX} bytes")));
        }
        let mut names = Vec::new();
        for name in template.split('/').filter(|name| !name.is_empty()) {
            let mut parts = Vec::new();
            let mut rest = name;
            while !rest.is_empty() {
                let (text, macros) =
                    rest.split_once('%').map_or((rest, None), |(text, more)| (text, Some(more)));
                if !text.is_empty() {
                    parts.push(Part::Text(text.into()));
                }
                let Some(more) = macros else { break };
                let Some((word, behind)) = more.split_once('%') else {
                    return invalid("a percent sign is written %%".into());
                };
                rest = behind;
                match word.split_once(':') {
                    None if word.is_empty() => parts.push(Part::Text("%".into())),
                    Some(("SRC", tag)) if !tag.is_empty() => parts.push(Part::Tag(tag.to_uppercase())),
                    _ => {
                        return invalid(format!(
                            "%{word}% is nothing that is known: write %SRC:TAG% for a tag of the source"
                        ));
                    }
                }
            }
            if let [Part::Text(text)] = &parts[..]
                && let Err(why) = check_name(text)
            {
                return invalid(why);
            }
            names.push(parts);
        }
        if names.len() > SUBFOLDER_NAMES_MAX {
            return invalid(format!("it has more than {SUBFOLDER_NAMES_MAX} names"));
        }
        Ok(Self(names))
    }

    /// The folder of a source, `a/b`, or why there is none, for people.
    pub(crate) fn resolve(&self, id: AgentId, source: &Agent) -> Result<String, String> {
        let mut folder = String::new();
        for parts in &self.0 {
            let mut name = String::new();
            for part in parts {
                match part {
                    Part::Text(text) => name.push_str(text),
                    Part::Tag(tag) => name.push_str(&value(tag, id, source)?),
                }
            }
            check_name(&name)?;
            if !folder.is_empty() {
                folder.push('/');
            }
            folder.push_str(&name);
        }
        Ok(folder)
    }
}

fn value(tag: &str, id: AgentId, source: &Agent) -> Result<String, String> {
    let value = match tag {
        "AGENT_ID" => id.to_string(),
        "AGENT_NAME" => source.name.to_string(),
        _ => match source.tags.iter().find(|(name, _)| name == tag) {
            Some((_, value)) => value.clone(),
            None => return Err(format!("it has no tag {tag}")),
        },
    };
    if value.is_empty() {
        return Err(format!("its tag {tag} is empty"));
    }
    if value.contains(['/', '\\']) || value.chars().any(text::is_unseen) {
        return Err(format!("its tag {tag} is {value:?}, which is no name of a folder"));
    }
    Ok(value)
}

/// One name of a folder that is to be made.
fn check_name(name: &str) -> Result<(), String> {
    if name == "." || name == ".." || name == RESERVED {
        Err(format!("{name:?} is no name of a folder"))
    } else if name.len() > NAME_LEN_MAX {
        Err(format!("a name of a folder has at most {NAME_LEN_MAX} bytes"))
    } else if name.contains(['/', '\\']) || name.chars().any(text::is_unseen) {
        Err(format!("{name:?} has what no name of a folder has"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::AgentEnrolled;
    use std::collections::BTreeMap;

    fn agent(name: &str, tags: &[(&str, &str)]) -> Agent {
        let id = AgentId([7; 16]);
        let mut agents = BTreeMap::new();
        let tags: Vec<(String, String)> =
            tags.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let enrolled = AgentEnrolled {
            agent: id,
            public_key: [0; 32],
            name: name.into(),
            tags: tags.into(),
            token: None,
            version: String::new(),
        };
        Agent::enrol(&mut agents, &enrolled);
        agents.remove(&id).expect("enrolled")
    }

    #[test]
    fn tags_become_names_of_folders() {
        let car = agent("car 7", &[("SITE", "Häfen"), ("UP", "..")]);
        let check = |template: &str, folder: Result<&str, &str>| {
            let resolved = Template::parse(template).expect("a template").resolve(AgentId([7; 16]), &car);
            match folder {
                Ok(folder) => assert_eq!(resolved.as_deref(), Ok(folder), "{template}"),
                Err(why) => {
                    assert!(resolved.as_ref().is_err_and(|e| e.contains(why)), "{template}: {resolved:?}")
                }
            }
        };
        check(DEFAULT, Ok("car 7"));
        check("", Ok(""));
        check("/", Ok(""));
        check("//%SRC:SITE%//cam-%SRC:AGENT_NAME%/", Ok("Häfen/cam-car 7"));
        check("50%%/%SRC:agent_id%", Ok("50%/07070707070707070707070707070707"));
        check("%SRC:SITE%/%SRC:UP%", Err("\"..\""));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let up = agent("..", &[("EMPTY", ""), ("DOT", "."), ("UP", ".."), ("DEEP", "a/b"), ("BACK", "a\\b")]);
        for (template, why) in [
            ("%SRC:AGENT_NAME%", "\"..\""),
            ("%SRC:DOT%%SRC:DOT%", "\"..\""),
            ("%SRC:DOT%flotilla", ".flotilla"),
            ("%SRC:UP%/x", "\"..\""),
            ("%SRC:EMPTY%", "empty"),
            ("a%SRC:EMPTY%", "empty"),
            ("%SRC:DEEP%", "a/b"),
            ("%SRC:BACK%", "no name"),
            ("%SRC:NOWHERE%", "no tag NOWHERE"),
        ] {
            let error = Template::parse(template).expect("a template").resolve(AgentId([7; 16]), &up);
            assert!(error.as_ref().is_err_and(|e| e.contains(why)), "{template}: {error:?}");
        }
        // A value may be part of a name that is none by itself.
        let fine = Template::parse("x%SRC:UP%").expect("a template").resolve(AgentId([7; 16]), &up);
        assert_eq!(fine.as_deref(), Ok("x.."));
        let long = agent("x", &[("LONG", &"v".repeat(200))]);
        let twice = Template::parse("%SRC:LONG%%SRC:LONG%").expect("a template");
        assert!(twice.resolve(AgentId([7; 16]), &long).is_err());
        for bad in [
            "..",
            "a/../b",
            ".",
            ".flotilla",
            "a/.flotilla",
            "%",
            "a%",
            "%SRC%",
            "%SRC:%",
            "%src:A%",
            "%DST:A%",
            "a\0b",
            "a\nb",
            "a\\b",
            &"a/".repeat(17),
            &"x".repeat(1025),
        ] {
            assert!(Template::parse(bad).is_err(), "{bad:?}");
        }
    }
}
