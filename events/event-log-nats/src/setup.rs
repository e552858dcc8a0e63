//! The stream at opening: made with settings that keep everything, or, if there is one, checked for what it can lose.

use std::collections::HashMap;
use std::fmt;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, Context, ErrorCode};
use event_log::{Damage, Place, Position, limits::MAX_RECORD_BYTES};
use tokio::time::Instant;

use crate::connection::{Connection, rest, with_source};
use crate::error::NatsOpenError;
use crate::limits::{ACK_TIMEOUT, MESSAGE_OVERHEAD_BYTES, OLDEST_SERVER, RECOMMENDED_SERVER};
use crate::options::NatsLogOptions;
use crate::subject;

/// The stream's metadata key that names the format of its messages.
const FORMAT_KEY: &str = "flotilla-log-format";
const FORMAT: &str = "1";

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

/// A stream ready to be the log.
pub(crate) struct Opened {
    pub(crate) context: Context,
    pub(crate) stream: Stream<()>,
    pub(crate) last: Position,
    pub(crate) findings: Vec<Finding>,
}

pub(crate) async fn open_stream(
    options: &NatsLogOptions,
    connection: &Connection,
) -> Result<Opened, NatsOpenError> {
    let mut findings = check_server(options, connection)?;
    let context =
        jetstream::context::ContextBuilder::new().timeout(ACK_TIMEOUT).build(connection.client.clone());
    let deadline = Instant::now() + options.open_timeout;
    let mut attempt = 0;
    let info = loop {
        match find_or_make(options, &context).await {
            Ok(info) => break info,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason)) if Instant::now() >= deadline => {
                return Err(NatsOpenError::JetStream { servers: options.shown_servers(), reason });
            }
            Err(Failure::Passing(_)) => rest(&mut attempt, deadline).await,
        }
    };
    check_fit(options, &info.config)?;
    findings.extend(check_settings(&info.config));
    let stream = context.get_stream_no_info(&options.stream).await.map_err(|error| {
        NatsOpenError::JetStream { servers: options.shown_servers(), reason: with_source(&error) }
    })?;
    check_whole(options, &info, &stream).await?;
    Ok(Opened { context, stream, last: Position(info.state.last_sequence), findings })
}

/// Refuses servers that can't keep a log; finds fault with those that do it badly.
fn check_server(options: &NatsLogOptions, connection: &Connection) -> Result<Vec<Finding>, NatsOpenError> {
    let server = connection.client.server_info();
    let needed = MAX_RECORD_BYTES + MESSAGE_OVERHEAD_BYTES;
    let version = parse_version(&server.version);
    // A version that can't be read is some development build: newer than any that is too old.
    if version.is_some_and(|version| version < OLDEST_SERVER) {
        return Err(NatsOpenError::ServerTooOld {
            servers: options.shown_servers(),
            version: server.version,
        });
    }
    if server.max_payload < needed {
        return Err(NatsOpenError::MaxPayload { max: server.max_payload, needed });
    }
    let mut findings = Vec::new();
    if version.is_some_and(|version| version < RECOMMENDED_SERVER) {
        findings.push(Finding {
            setting: "server version",
            found: server.version,
            loss: "before 2.15 some writes were not synced although `sync_interval: always` was set",
            remedy: "run 2.15.1 or later",
        });
    }
    Ok(findings)
}

fn parse_version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

enum Failure {
    /// Trying again may help: no leader yet, no answer.
    Passing(String),
    Final(NatsOpenError),
}

async fn find_or_make(options: &NatsLogOptions, context: &Context) -> Result<Info, Failure> {
    let found = match context.get_stream(&options.stream).await {
        Ok(stream) => return Ok(stream.cached_info().clone()),
        Err(error) => error,
    };
    match found.kind() {
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
        _ => return Err(Failure::Passing(with_source(&found))),
    }
    match context.create_stream(config(options)).await {
        Ok(stream) => {
            tracing::info!(
                stream = options.stream,
                replicas = options.replicas,
                "made the event log's stream"
            );
            Ok(stream.cached_info().clone())
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                // Another replica was faster; its stream is found next time.
                Failure::Passing("made by another".to_owned())
            }
            CreateStreamErrorKind::JetStream(refusal)
                if refusal.code() / 100 == 4 || refusal.code() == 500 =>
            {
                let what =
                    format!("the server refuses to make it with {} replicas: {refusal}", options.replicas);
                Failure::Final(NatsOpenError::Unfit { stream: options.stream.clone(), what })
            }
            _ => Failure::Passing(with_source(&error)),
        }),
    }
}

/// A stream that keeps everything: no expiry, no limit that evicts, no way to delete.
fn config(options: &NatsLogOptions) -> Config {
    Config {
        name: options.stream.clone(),
        description: Some("Flotilla event log".to_owned()),
        subjects: vec![subject::wildcard(&options.subject_prefix)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        // A full disk refuses new records instead of eating old ones.
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        num_replicas: options.replicas,
        deny_delete: true,
        deny_purge: true,
        allow_rollup: false,
        // Direct gets are answered by any replica, however far behind.
        allow_direct: false,
        metadata: HashMap::from([(FORMAT_KEY.to_owned(), FORMAT.to_owned())]),
        ..Config::default()
    }
}

/// Refuses streams that would not behave as a log.
fn check_fit(options: &NatsLogOptions, config: &Config) -> Result<(), NatsOpenError> {
    let format = config.metadata.get(FORMAT_KEY).map_or(FORMAT, String::as_str);
    let wildcard = subject::wildcard(&options.subject_prefix);
    let what = if config.subjects != [wildcard.clone()] {
        format!("its subjects are {:?}, not {wildcard:?}", config.subjects)
    } else if format != FORMAT {
        format!("its format is {format:?}, this program knows {FORMAT:?}; use a newer one")
    } else if config.retention != RetentionPolicy::Limits {
        "its retention removes records that were read; it must be `limits`".to_owned()
    } else if config.no_ack {
        "it does not acknowledge (`no_ack`)".to_owned()
    } else if config.sealed {
        "it is sealed".to_owned()
    } else if config.mirror.is_some() || config.sources.is_some() || config.subject_transform.is_some() {
        "it takes or changes records by itself (mirror, sources or subject transform)".to_owned()
    } else if config.first_sequence.is_some_and(|first| first > 1) {
        "its sequence does not begin at 1".to_owned()
    } else {
        return Ok(());
    };
    Err(NatsOpenError::Unfit { stream: options.stream.clone(), what })
}

/// Refuses a stream with gaps: records were deleted, expired or lost.
async fn check_whole(
    options: &NatsLogOptions,
    info: &Info,
    stream: &Stream<()>,
) -> Result<(), NatsOpenError> {
    let state = &info.state;
    if state.messages == state.last_sequence {
        return Ok(());
    }
    let first = if state.first_sequence > 1 {
        1
    } else {
        // Which one it is makes the message better, no more: without an answer it is some position from 1 on.
        let details = stream.info_builder().with_deleted(true).fetch().await.ok();
        let deleted = details.and_then(|details| details.info.state.deleted);
        deleted.and_then(|deleted| deleted.into_iter().min()).unwrap_or(1)
    };
    let missing = state.last_sequence.saturating_sub(state.messages);
    let what = format!("{missing} of {} records are missing", state.last_sequence);
    let place = Place::Server { stream: options.stream.clone(), sequence: first };
    Err(NatsOpenError::Damaged(Damage { position: Position(first), place, what }))
}

/// What a stream's settings can lose, worst first.
fn check_settings(config: &Config) -> Vec<Finding> {
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

    #[test]
    fn streams_that_are_no_log_are_refused() {
        let options = NatsLogOptions::new("localhost");
        let check = |word: &str, change: &dyn Fn(&mut Config)| {
            let mut config = config(&options);
            change(&mut config);
            let error = check_fit(&options, &config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        check("subjects", &|config| config.subjects = vec!["other.>".to_owned()]);
        check("format", &|config| {
            config.metadata.insert(FORMAT_KEY.to_owned(), "2".to_owned());
        });
        check("retention", &|config| config.retention = RetentionPolicy::WorkQueue);
        check("no_ack", &|config| config.no_ack = true);
        check("sealed", &|config| config.sealed = true);
        check("begin at 1", &|config| config.first_sequence = Some(5));
    }

    #[test]
    fn versions_are_read() {
        for (text, version) in [
            ("2.15.1", Some((2, 15))),
            ("v2.9.10", Some((2, 9))),
            ("2.11.0-RC.1", Some((2, 11))),
            ("dev", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
