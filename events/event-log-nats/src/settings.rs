//! What a stream's settings, or the server, can lose: found at opening, reported, never changed.

use std::fmt;

use async_nats::jetstream::stream::{Compression, Config, DiscardPolicy, PersistenceMode, StorageType};

/// A setting of the server or stream that can lose acknowledged records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The setting, as NATS calls it.
    pub setting: &'static str,
    /// What it is now.
    pub found: String,
    /// What can be lost by it.
    pub loss: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}; {}", self.setting, self.found, self.loss, self.remedy)
    }
}

/// What a stream's settings can lose, worst first.
pub(crate) fn check_settings(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |bad: bool, setting, found: String, loss, remedy| {
        if bad {
            findings.push(Finding { setting, found, loss, remedy });
        }
    };
    find(
        config.storage != StorageType::File,
        "storage",
        "memory".to_owned(),
        "the whole log is lost when the servers restart",
        "make a new stream with `storage: file` and copy the log",
    );
    find(
        config.persist_mode == Some(PersistenceMode::Async),
        "persist_mode",
        "async".to_owned(),
        "records are acknowledged before they are written",
        "make a new stream with the default mode and copy the log",
    );
    find(
        !config.max_age.is_zero(),
        "max_age",
        format!("{} s", config.max_age.as_secs()),
        "older records are removed",
        "set it to 0",
    );
    let limits = [
        ("max_msgs", config.max_messages),
        ("max_bytes", config.max_bytes),
        ("max_msgs_per_subject", config.max_messages_per_subject),
    ];
    for (setting, limit) in limits {
        // At a limit on the whole stream `discard: new` refuses; one per subject evicts unless that is said as well.
        let evicts = config.discard != DiscardPolicy::New
            || (setting == "max_msgs_per_subject" && !config.discard_new_per_subject);
        find(
            limit > 0 && evicts,
            setting,
            limit.to_string(),
            "the oldest records are removed when it is reached",
            "set it to -1, and discard to new",
        );
    }
    find(
        config.allow_rollup,
        "allow_rollup_hdrs",
        "true".to_owned(),
        "a message can replace all before it",
        "set it to false",
    );
    find(
        config.allow_message_ttl,
        "allow_msg_ttl",
        "true".to_owned(),
        "messages can be sent that expire and leave gaps",
        "make a new stream without it and copy the log",
    );
    find(
        !config.deny_purge,
        "deny_purge",
        "false".to_owned(),
        "anyone with access to the stream can purge it",
        "set it to true",
    );
    find(
        !config.deny_delete,
        "deny_delete",
        "false".to_owned(),
        "anyone with access to the stream can delete records",
        "set it to true",
    );
    find(
        !matches!(config.compression, None | Some(Compression::None)),
        "compression",
        "s2".to_owned(),
        "servers before 2.14.3 can corrupt compressed blocks",
        "set it to none, or make sure of the version on every server",
    );
    find(
        config.num_replicas < 3,
        "num_replicas",
        config.num_replicas.to_string(),
        "the log is lost with the disk of one server",
        "use 3 on three machines, and back up the stream",
    );
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::NatsLogOptions;
    use crate::setup::{check_fit, config};

    #[test]
    fn our_own_settings_are_without_findings() {
        let mut options = NatsLogOptions::new("localhost");
        options.replicas = 3;
        assert_eq!(check_settings(&config(&options)), []);
        assert!(check_fit(&options, &config(&options)).is_ok());
        options.replicas = 1;
        let settings: Vec<_> =
            check_settings(&config(&options)).iter().map(|finding| finding.setting).collect();
        assert_eq!(settings, ["num_replicas"]);
    }

    #[test]
    fn every_setting_that_loses_records_is_found() {
        let good = config(&NatsLogOptions { replicas: 3, ..NatsLogOptions::new("localhost") });
        let check = |setting: &str, change: &dyn Fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config);
            let found = check_settings(&config);
            assert_eq!(found.iter().map(|finding| finding.setting).collect::<Vec<_>>(), [setting]);
            assert!(found[0].to_string().starts_with(setting));
        };
        check("storage", &|config| config.storage = StorageType::Memory);
        check("persist_mode", &|config| config.persist_mode = Some(PersistenceMode::Async));
        check("max_age", &|config| config.max_age = std::time::Duration::from_secs(60));
        check("max_msgs", &|config| {
            config.max_messages = 9;
            config.discard = DiscardPolicy::Old;
        });
        check("max_bytes", &|config| {
            config.max_bytes = 9;
            config.discard = DiscardPolicy::Old;
        });
        check("max_msgs_per_subject", &|config| config.max_messages_per_subject = 1);
        check("allow_rollup_hdrs", &|config| config.allow_rollup = true);
        check("allow_msg_ttl", &|config| config.allow_message_ttl = true);
        check("deny_purge", &|config| config.deny_purge = false);
        check("deny_delete", &|config| config.deny_delete = false);
        check("compression", &|config| config.compression = Some(Compression::S2));
        check("num_replicas", &|config| config.num_replicas = 1);
    }
}
