//! Form 5: form 4 with backups, and what is asked of runs (`events/AUDIT_FORMAT.md` §10.8). It never changes.

use event_schema::{Keep, Place, Private, Purpose, RunOptions, When};

use super::one::Form;
use super::two;
use crate::backup::standing::{Backup, Backups, Shelf, Source, Thinning, Version, Watch};
use crate::projection::{RunView, Views};

pub(super) fn hash(views: &Views) -> [u8; 32] {
    two::of_number(5, views)
}

impl Form {
    pub(super) fn backup_job(
        &mut self,
        sources: &[Place],
        destinations: &[Place],
        subfolder: &Private<String>,
        when: &When,
        keep: &Keep,
    ) {
        self.u8(3);
        self.list(sources.iter(), Self::place);
        self.list(destinations.iter(), Self::place);
        self.private(subfolder, |form, text| form.text(text));
        match when {
            When::Manual => self.u8(0),
            When::Every { minutes } => {
                self.u8(1);
                self.u64((*minutes).into());
            }
            When::Calendar { expression } => {
                self.u8(2);
                self.text(expression);
            }
            When::Continuous { quiet_seconds, minutes } => {
                self.u8(3);
                self.u64((*quiet_seconds).into());
                self.u64((*minutes).into());
            }
        }
        let Keep { last, hourly, daily, weekly, monthly, yearly, within_days } = *keep;
        for count in [last, hourly, daily, weekly, monthly, yearly, within_days] {
            self.u64(count.into());
        }
    }

    pub(super) fn options(&mut self, options: &RunOptions) {
        let RunOptions { rules, first, hook, hook_timeout_s } = options;
        self.list(rules.iter(), |form, line| form.text(line));
        self.list(first.iter(), |form, line| form.text(line));
        self.option(hook.as_ref(), |form, name| form.text(name));
        self.option(*hook_timeout_s, |form, seconds| form.u64(seconds.into()));
    }

    /// What a run has at its end.
    pub(super) fn of_purpose(&mut self, run: &RunView) {
        self.private(&run.options, Self::options);
        match &run.purpose {
            Purpose::Plain => self.u8(0),
            Purpose::Version { name } => {
                self.u8(1);
                self.text(name);
            }
            Purpose::Restore { of, version } => {
                self.u8(2);
                self.raw(&of.0);
                self.text(version);
            }
        }
    }

    /// What the state has at its end.
    pub(super) fn backups(&mut self, backups: &Backups) {
        self.map(&backups.jobs, |form, id, backup| {
            form.raw(&id.0);
            let Backup { deleted, sources, shelves, thinning } = backup;
            form.bool(*deleted);
            form.map(sources, |form, id, Source { started, changed, watch }| {
                form.raw(&id.0);
                form.option(*started, |form, name| form.text(&name.to_string()));
                form.bool(*changed);
                form.option(*watch, |form, Watch { command, refused }| {
                    form.raw(&command.0);
                    form.option(refused, Self::refusal);
                });
            });
            form.map(shelves, |form, (storage, source), Shelf { versions, unthinned }| {
                form.raw(&storage.0);
                form.raw(&source.0);
                form.bool(*unthinned);
                form.map(versions, |form, name, version| {
                    form.text(&name.to_string());
                    let Version { run, complete, shrunk, entries, bytes, shelf } = version;
                    form.raw(&run.0);
                    form.bool(*complete);
                    form.bool(*shrunk);
                    form.u64(*entries);
                    form.u64(*bytes);
                    form.private(shelf, |form, path| form.bytes(path));
                });
            });
            form.map(thinning, |form, id, Thinning { command, source }| {
                form.raw(&id.0);
                form.raw(&command.0);
                form.raw(&source.0);
            });
        });
    }
}
