//! `flotilla replica`: several control services for one fleet.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::client::Client;
use super::{Done, Failure, Global, output, place};
use crate::api::view::ReplicasView;
use crate::pki::bundle;
use crate::service::now;

#[derive(Debug, Subcommand)]
pub(super) enum Replica {
    /// Put the fleet's keys into an encrypted file, from which another control service is made
    #[command(
        after_help = "Example: flotilla replica invite --data ./flotilla-data --out second.replica\n\n\
        Bring the file to the new machine, and the code that is printed by another way. There:\n  \
        FLOTILLA_JOIN_CODE=… flotilla serve --join second.replica --nats nats://… --data ./flotilla-data\n\
        The file holds every key of the fleet: delete it when the replica runs."
    )]
    Invite {
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How long it may be used
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = place::time)]
        expires: Duration,
    },
    /// List the control services on this log, and who holds the lease
    #[command(after_help = "Example: flotilla replica list")]
    List,
}

pub(super) fn run(global: Global, command: Replica) -> Done {
    match command {
        Replica::Invite { out, expires } => invite(global, &out, expires),
        Replica::List => list(global),
    }
}

fn invite(global: Global, out: &std::path::Path, expires: Duration) -> Done {
    if global.server.is_some() {
        return Err(Failure::Usage(
            "replica invite reads the keys in the data folder: run it on a service's machine".into(),
        ));
    }
    let data = global.data.unwrap_or_else(|| "flotilla-data".into());
    let token = std::fs::read(data.join("api-token")).map_err(|error| {
        Failure::Failed(format!(
            "no control service has run with the data folder {} ({error}); name it with --data",
            data.display()
        ))
    })?;
    let (bytes, code) = bundle::invite(&data, &token, now(), expires).map_err(Failure::of)?;
    if out.try_exists().unwrap_or(true) {
        return Err(Failure::Failed(format!("{} is there already: choose another name", out.display())));
    }
    crate::private_file::write(out, &bytes)
        .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", out.display())))?;
    if global.json {
        return output::say_json(&json!({ "bundle": out.to_string_lossy(), "code": code.as_str() }));
    }
    output::say(&format!(
        "The fleet's keys are in {}.\n  code  {}\nThe code is shown this once. On the new machine:\n  \
         FLOTILLA_JOIN_CODE={} flotilla serve --join {} --nats nats://… --data ./flotilla-data",
        out.display(),
        *code,
        *code,
        out.display()
    ))
}

fn list(global: Global) -> Done {
    let as_json = global.json;
    let view: ReplicasView = Client::new(global)?.get("replicas")?;
    if as_json {
        return output::say_json(&view);
    }
    if view.replicas.is_empty() {
        return output::say("this control service has its log to itself");
    }
    for replica in &view.replicas {
        output::say(&format!(
            "{}  {:<7}  since {}  life {}  version {}{}{}{}",
            replica.id,
            replica.state,
            replica.since,
            replica.epoch,
            replica.version,
            if replica.lease { "  holds the lease" } else { "" },
            if replica.own { "  (this one)" } else { "" },
            replica.ended.as_ref().map(|why| format!("  {why}")).unwrap_or_default(),
        ))?;
    }
    output::say(&format!("gateways  {}", view.gateways.join(" ")))
}
