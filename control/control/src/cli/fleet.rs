//! `flotilla token`, `agents`, `groups`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::client::{Client, segment};
use super::{Done, Failure, output, place};
use crate::api::view::{
    AgentView, AgentsView, GroupView, GroupWish, GroupsView, MembersWish, TagsWish, TokenCreated, TokenView,
    TokenWish, TokensView,
};
use crate::private_file;

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a bootstrap file for new agents
    #[command(
        after_help = "Examples:\n  flotilla token create --tag AGENT_NAME=nas-1 --tag SITE=harbour --out nas-1.json\n  \
        flotilla token create --tag AGENT_NAME=nas-1 --code\n\n\
        File and code hold a secret: whoever has one can join the fleet until it is spent or expires."
    )]
    Create {
        /// Print an enrolment code instead: the same as one word, for the text field of a NAS package's wizard
        #[arg(long, conflicts_with_all = ["out", "storage_path"])]
        code: bool,
        /// A tag for agents that use the token; AGENT_NAME names them (repeatable)
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = place::tag)]
        tags: Vec<(String, String)>,
        /// How many agents may use it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// How long it counts, such as 30min, 24h or 7d
        #[arg(long, default_value = "24h", value_parser = place::time, value_name = "TIME")]
        expires: Duration,
        /// Folder at the agent below which relative paths of jobs lie [default: `folders` in its data folder]
        #[arg(long, value_name = "DIR")]
        storage_path: Option<String>,
        /// Where to write the bootstrap file (0600) [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show all tokens
    #[command(after_help = "Example: flotilla token list")]
    List,
    /// Make a token worthless; agents that used it stay
    #[command(after_help = "Example: flotilla token revoke 0193a1b2")]
    Revoke {
        /// Its id or the beginning of it
        token: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Agents {
    /// Show all agents
    #[command(after_help = "Example: flotilla agents list --json")]
    List,
    /// Show one agent
    #[command(after_help = "Example: flotilla agents show nas-1")]
    Show {
        /// Name, id or beginning of the id
        agent: String,
    },
    /// Let a waiting agent in
    #[command(after_help = "Example: flotilla agents approve nas-1")]
    Approve {
        /// Name, id or beginning of the id
        agent: String,
    },
    /// Throw an agent out, for good
    #[command(after_help = "Example: flotilla agents remove nas-1")]
    Remove {
        /// Name, id or beginning of the id
        agent: String,
    },
    /// Set or take away tags
    #[command(after_help = "Example: flotilla agents tag nas-1 SITE=harbour --remove OLD")]
    Tag {
        /// Name, id or beginning of the id
        agent: String,
        /// Tags to set
        #[arg(value_name = "NAME=VALUE", value_parser = place::tag)]
        set: Vec<(String, String)>,
        /// Names of tags to take away (repeatable)
        #[arg(long, value_name = "NAME")]
        remove: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Groups {
    /// Make a group
    #[command(after_help = "Example: flotilla groups create harbour nas-1 nas-2")]
    Create {
        /// Its name
        name: String,
        /// Agents to put into it at once
        agents: Vec<String>,
    },
    /// Show all groups
    #[command(after_help = "Example: flotilla groups list")]
    List,
    /// Show one group
    #[command(after_help = "Example: flotilla groups show harbour")]
    Show {
        /// Name, id or beginning of the id
        group: String,
    },
    /// Put agents into a group
    #[command(after_help = "Example: flotilla groups add harbour nas-3")]
    Add {
        /// The group
        group: String,
        /// The agents
        #[arg(required = true)]
        agents: Vec<String>,
    },
    /// Take agents out of a group
    #[command(after_help = "Example: flotilla groups remove harbour nas-3")]
    Remove {
        /// The group
        group: String,
        /// The agents
        #[arg(required = true)]
        agents: Vec<String>,
    },
}

pub(super) fn token(client: &Client, json: bool, command: Token) -> Done {
    match command {
        Token::Create { code, tags, uses, expires, storage_path, out } => {
            let wish = TokenWish {
                tags: tags.into_iter().collect(),
                uses: Some(uses),
                expires_s: Some(expires.as_secs()),
                storage_path,
            };
            let created: TokenCreated = client.post("tokens", &wish)?;
            if code {
                let id = &created.id;
                let Some(code) = created.code else {
                    return Err(Failure::Failed(format!(
                        "the gateways' names are too long for an enrolment code; use --out FILE (flotilla token revoke \
                         {id} takes back the token that was made)"
                    )));
                };
                if json {
                    return output::say_json(&json!({ "id": id, "expires": created.expires, "code": code }));
                }
                // Beside the code, which alone is for a wizard or a file.
                let host = created.bootstrap["management_server"]["host"].as_str().unwrap_or_default();
                eprintln!(
                    "Token {id}, until {}, for {host}. flotilla token revoke {id} takes it back.",
                    created.expires
                );
                return output::say(&code);
            }
            let text = serde_json::to_string_pretty(&created.bootstrap).map_err(Failure::of)?;
            let Some(file) = out else { return output::say(&text) };
            private_file::write(&file, format!("{text}\n").as_bytes()).map_err(|error| {
                let file = file.display();
                let id = &created.id;
                Failure::Failed(format!(
                    "cannot write {file}: {error} (flotilla token revoke {id} takes it back)"
                ))
            })?;
            if json {
                output::say_json(&json!({
                    "id": created.id, "expires": created.expires, "file": file.to_string_lossy(),
                }))
            } else {
                output::say(&format!(
                    "wrote {} (token {}, until {})\nNext, on the agent's machine: flotilla-agent run --bootstrap {} \
                     --data DIR",
                    file.display(),
                    created.id,
                    created.expires,
                    file.display()
                ))
            }
        }
        Token::List => {
            let tokens = client.list("tokens", |page: TokensView| (page.tokens, page.next))?;
            if json {
                return output::say_json(&json!({"tokens": tokens}));
            }
            let row = |t: TokenView| {
                vec![t.id, t.state, format!("{} of {}", t.used, t.uses), t.expires, tags(&t.tags)]
            };
            output::table(&["ID", "STATE", "USED", "EXPIRES", "TAGS"], tokens.into_iter().map(row))
        }
        Token::Revoke { token } => {
            let token: TokenView = client.delete(&format!("tokens/{}", segment(&token)))?;
            if json { output::say_json(&token) } else { output::say(&format!("revoked {}", token.id)) }
        }
    }
}

pub(super) fn agents(client: &Client, json: bool, command: Agents) -> Done {
    let path = |agent: &str| format!("agents/{}", segment(agent));
    let (agent, done): (AgentView, &str) = match command {
        Agents::List => {
            let agents = client.list("agents", |page: AgentsView| (page.agents, page.next))?;
            if json {
                return output::say_json(&json!({"agents": agents}));
            }
            let row = |a: AgentView| {
                vec![
                    short(&a.id),
                    a.name,
                    a.state,
                    a.version,
                    a.addresses.join(" "),
                    a.last_seen,
                    tags(&a.tags),
                ]
            };
            let heads = ["ID", "NAME", "STATE", "VERSION", "ADDRESSES", "LAST SEEN", "TAGS"];
            return output::table(&heads, agents.into_iter().map(row));
        }
        Agents::Show { agent } => {
            let agent: AgentView = client.get(&path(&agent))?;
            if json {
                return output::say_json(&agent);
            }
            return output::say(&format!(
                "{}\n  id         {}\n  state      {}\n  version    {}\n  addresses  {}\n  last seen  {}\n  enrolled   \
                 {}\n  key        {}\n  groups     {}\n  tags       {}",
                agent.name,
                agent.id,
                agent.state,
                agent.version,
                agent.addresses.join(" "),
                agent.last_seen,
                agent.enrolled,
                agent.public_key,
                agent.groups.join(", "),
                tags(&agent.tags),
            ));
        }
        Agents::Approve { agent } => {
            (client.post(&format!("{}/approve", path(&agent)), &json!({}))?, "approved")
        }
        Agents::Remove { agent } => (client.delete(&path(&agent))?, "removed"),
        Agents::Tag { agent, set, remove } => {
            if set.is_empty() && remove.is_empty() {
                return Err(Failure::Usage("give NAME=VALUE or --remove NAME".into()));
            }
            let wish = TagsWish { set: set.into_iter().collect(), remove };
            (client.put(&format!("{}/tags", path(&agent)), &wish)?, "tagged")
        }
    };
    if json {
        output::say_json(&agent)
    } else {
        output::say(&format!("{done} {} ({})", agent.name, agent.id))
    }
}

pub(super) fn groups(client: &Client, json: bool, command: Groups) -> Done {
    let path = |group: &str| format!("groups/{}", segment(group));
    let group: GroupView = match command {
        Groups::Create { name, agents } => {
            // A wrong name among the agents is found before there is a group.
            for agent in &agents {
                client.get::<AgentView>(&format!("agents/{}", segment(agent)))?;
            }
            let group: GroupView = client.post("groups", &GroupWish { name })?;
            if agents.is_empty() {
                group
            } else {
                client.post(&format!("{}/add", path(&group.id)), &MembersWish { agents })?
            }
        }
        Groups::List => {
            let groups = client.list("groups", |page: GroupsView| (page.groups, page.next))?;
            if json {
                return output::say_json(&json!({"groups": groups}));
            }
            let row = |g: GroupView| vec![short(&g.id), g.name.clone(), members(&g)];
            return output::table(&["ID", "NAME", "MEMBERS"], groups.into_iter().map(row));
        }
        Groups::Show { group } => client.get(&path(&group))?,
        Groups::Add { group, agents } => {
            client.post(&format!("{}/add", path(&group)), &MembersWish { agents })?
        }
        Groups::Remove { group, agents } => {
            client.post(&format!("{}/remove", path(&group)), &MembersWish { agents })?
        }
    };
    if json {
        return output::say_json(&group);
    }
    output::say(&format!("{} ({}): {}", group.name, group.id, members(&group)))
}

fn members(group: &GroupView) -> String {
    if group.members.is_empty() {
        return "nobody".into();
    }
    group.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn tags(tags: &BTreeMap<String, String>) -> String {
    tags.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Enough of an agent's id to tell it apart, most of the time.
pub(super) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
