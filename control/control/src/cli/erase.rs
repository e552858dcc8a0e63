//! `flotilla erase`: personal texts of a job, an agent or a user, for good.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Args;

use super::client::Client;
use super::{Done, Failure, output};
use crate::api::view::{EraseWish, ErasedView};

#[derive(Debug, Args)]
pub(super) struct Erase {
    /// job: its name, its folders, the files that its runs had trouble with. agent: its name, tags and addresses.
    /// user: the name behind what was decided
    #[arg(value_parser = ["job", "agent", "user"])]
    kind: String,
    /// Name or id; for a job that was deleted its name as its runs have it, or its whole id
    name: String,
    /// Why: it stands on the log in the place of what is erased, so do not repeat that
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(client: &Client, as_json: bool, line: Erase) -> Done {
    let Erase { kind, name, reason, yes } = line;
    if !yes {
        ask(&kind, &name)?;
    }
    let erased: ErasedView = client.post("erase", &EraseWish { kind, name, reason })?;
    if !erased.key_destroyed {
        output::complain(
            "it is recorded, but the key could not be destroyed yet: the service tries again every few \
             seconds. Run the same command again to see",
        );
    }
    if erased.in_clear {
        output::complain(
            "some of it was recorded before the log's schema level 2, in the clear, or may have been, where those records \
             are in an archive: that stays as long as log and archive",
        );
    }
    if !erased.under_jobs.is_empty() {
        output::complain(&format!(
            "its addresses in commands, and folders of consolidations that were named after it or its tags, are under the \
             keys of the jobs it took part in and stay as long as these; erase them too if that matters: {}",
            erased.under_jobs.join(", ")
        ));
    }
    if as_json {
        output::say_json(&erased)?;
    } else {
        let when = erased.erased.as_deref().unwrap_or("before");
        output::say(&format!("{} erased ({when}); its history stays, without the texts", erased.subject))?;
    }
    if erased.key_destroyed { Ok(()) } else { Err(Failure::Quiet) }
}

fn ask(kind: &str, name: &str) -> Done {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Usage("this cannot be undone: say --yes".into()));
    }
    let mut stderr = std::io::stderr();
    let shown = name.escape_debug();
    let asked = write!(stderr, "Erase every text of the {kind} {shown}? It cannot be undone. Type yes: ");
    asked.and_then(|()| stderr.flush()).map_err(Failure::of)?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(Failure::of)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::Failed("nothing was erased".into())) }
}
