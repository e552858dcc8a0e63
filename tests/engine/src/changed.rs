//! What is sent when little has changed: a large file with one byte more at its start, a renamed folder, a file that
//! another job has brought already. Bytes are all that crossed the loopback device, whoever sent them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use e2e::differences;
use serde::Serialize;

use crate::Common;
use crate::files::{insert_at_start, one};
use crate::fleet::Fleet;
use crate::net::{Place, prepare, received_by};
use crate::rsync::{self, Daemon};
use crate::table::{Results, Row, round};

/// Files in the folder that is renamed.
const FOLDER_FILES: u64 = 64;

const LIMIT: Duration = Duration::from_secs(600);

/// Options of `engine-bench changed`.
#[derive(clap::Args)]
#[command(after_help = "\
Every case begins with everything in place and measures what the next run transfers. Bytes are those of the loopback
device, so what the agents say to the control service counts too. Example:
  engine-bench changed --size 1GB --folder 10GB")]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Size of the file.
    #[arg(long, default_value = "1GB", value_parser = size)]
    size: u64,
    /// Size of the folder that is renamed.
    #[arg(long, default_value = "1GB", value_parser = size)]
    folder: u64,
    /// Who. May be given several times or with commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Who::Flotilla, Who::Rsync])]
    contender: Vec<Who>,
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text, 1..=1_000_000_000_000)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    Flotilla,
    Rsync,
}

#[derive(Serialize)]
struct Changed {
    contender: Who,
    case: &'static str,
    size: u64,
    seconds: f64,
    transferred: u64,
    /// Of the size.
    share: f64,
}

impl Row for Changed {
    const HEADER: &'static [&'static str] = &["case", "who", "size", "time", "transferred", "of the size"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.case.into(),
            if self.contender == Who::Flotilla { "flotilla".into() } else { "rsync".into() },
            format!("{:.0} MB", self.size as f64 / 1e6),
            format!("{:.2} s", self.seconds),
            format!("{:.2} MB", self.transferred as f64 / 1e6),
            format!("{:.3} %", self.share * 100.0),
        ]
    }
}

/// Runs everything.
pub(crate) fn run(args: &Args) -> Result<bool> {
    prepare()?;
    let mut results = Results::new(args.common.json);
    for &who in &args.contender {
        if who == Who::Rsync && !rsync::is_here() {
            continue;
        }
        let folder = args.common.folder()?;
        let mut trial = Trial { args, dir: folder.path(), who, fleet: None };
        if who == Who::Flotilla {
            let mut fleet = Fleet::start(&folder.path().join("fleet"), Place::here(), "127.0.0.1")?;
            let node = |name: &str| (name.to_owned(), Place::here(), "127.0.0.1".to_owned());
            fleet.enrol(vec![node("source"), node("destination")])?;
            trial.fleet = Some(fleet);
        }
        trial.hold(&mut results)?;
    }
    results.print();
    Ok(true)
}

struct Trial<'a> {
    args: &'a Args,
    dir: &'a Path,
    who: Who,
    fleet: Option<Fleet>,
}

impl Trial<'_> {
    fn hold(&self, results: &mut Results<Changed>) -> Result<()> {
        let (file, tree, other) = (self.dir.join("file"), self.dir.join("tree"), self.dir.join("other"));
        for folder in [&file, &tree.join("old name"), &other] {
            fs::create_dir_all(folder)?;
        }
        one(&file.join("large"), self.args.size, 1)?;
        for n in 0..FOLDER_FILES {
            let size = self.args.folder / FOLDER_FILES;
            one(&tree.join(format!("old name/file-{n}")), size, 100 + n)?;
        }
        self.send("file", &file, true)?;
        self.send("tree", &tree, true)?;
        insert_at_start(&file.join("large"))?;
        let mut add = |case, size, (seconds, transferred): (f64, u64)| {
            let share = round(transferred as f64 / size as f64, 6);
            results.add(Changed {
                contender: self.who,
                case,
                size,
                seconds: round(seconds, 3),
                transferred,
                share,
            })
        };
        add("a byte more at the start", self.args.size, self.send("file", &file, false)?)?;
        fs::rename(tree.join("old name"), tree.join("new name"))?;
        add("a folder renamed", self.args.folder, self.send("tree", &tree, false)?)?;
        fs::copy(file.join("large"), other.join("the same"))?;
        add("the same under another job", self.args.size, self.send("other", &other, true)?)
    }

    /// Brings a folder to the destination's folder of the same name; seconds and bytes.
    fn send(&self, name: &str, from: &Path, first: bool) -> Result<(f64, u64)> {
        let to = self.dir.join(format!("got-{name}"));
        let (bytes, began) = (received_by("lo")?, Instant::now());
        match &self.fleet {
            Some(fleet) => {
                let run = if first {
                    fleet.distribute(name, from, std::slice::from_ref(&to))?
                } else {
                    fleet.start_job(name)?
                };
                fleet.wait(&run, LIMIT)?;
            }
            None => {
                let daemon = Daemon::start(self.dir, &Place::here(), "127.0.0.1", from)?;
                let mut process = daemon.fetch("rsync", self.dir, &Place::here(), &to)?;
                rsync::finish(&mut process, LIMIT)?;
            }
        }
        let done = (began.elapsed().as_secs_f64(), received_by("lo")? - bytes);
        let found = differences(from, &to)?;
        ensure!(found.is_empty(), "{name} is not what was sent:\n{found}");
        Ok(done)
    }
}
