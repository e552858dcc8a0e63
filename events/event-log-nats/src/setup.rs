//! The stream at opening: made with settings that keep everything, or, if there is one, checked for what it can lose.

use std::collections::HashMap;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use event_log::{Damage, Place, Position, limits::MAX_RECORD_BYTES};
use tokio::time::Instant;

use crate::connection::{Connection, rest, with_source};
use crate::error::NatsOpenError;
use crate::frame;
use crate::limits::{ACK_TIMEOUT, FRAME_BYTES, MESSAGE_OVERHEAD_BYTES, OLDEST_SERVER, RECOMMENDED_SERVER};
use crate::message;
use crate::options::NatsLogOptions;
use crate::servers::Servers;
use crate::settings::{Finding, check_settings};

/// The stream's metadata key that names the format of its messages.
const FORMAT_KEY: &str = "flotilla-log-format";
const FORMAT: &str = frame::VERSION;
/// The format that can be raised to ours. A stream without the key has it, too.
const OLDER_FORMAT: &str = "1";

/// A stream ready to be the log.
pub(crate) struct Opened {
    pub(crate) context: Context,
    pub(crate) stream: Stream<()>,
    pub(crate) info: Info,
    /// There was none: it was made just now.
    pub(crate) made: bool,
    /// Payload of a frame of several records, at most.
    pub(crate) frame_bytes: usize,
    pub(crate) findings: Vec<Finding>,
}

/// `held`: there is a copy with records, so a stream that is not there was lost; what to say then.
pub(crate) async fn open_stream(
    options: &NatsLogOptions,
    connection: &Connection,
    held: Option<NatsOpenError>,
) -> Result<Opened, NatsOpenError> {
    let mut findings = check_server(options, connection)?;
    let context =
        jetstream::context::ContextBuilder::new().timeout(ACK_TIMEOUT).build(connection.client.clone());
    let deadline = Instant::now() + options.open_timeout;
    let mut attempt = 0;
    let (info, made) = loop {
        match find_or_make(options, &context, held.is_none()).await {
            Ok(found) => break found,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Absent) if Instant::now() >= deadline => {
                return Err(held.unwrap_or_else(|| {
                    let what = "it is not there".to_owned();
                    NatsOpenError::Unfit { stream: options.stream.clone(), what }
                }));
            }
            Err(Failure::Passing(reason)) if Instant::now() >= deadline => {
                return Err(NatsOpenError::JetStream { servers: options.shown_servers(), reason });
            }
            Err(Failure::Passing(_) | Failure::Absent) => rest(&mut attempt, deadline).await,
        }
    };
    check_fit(options, &info.config)?;
    if needs_raising(options, &info.config) {
        raise(options, &context, &info.config, deadline).await?;
    }
    findings.extend(check_settings(&info.config));
    let stream = context.get_stream_no_info(&options.stream).await.map_err(|error| {
        NatsOpenError::JetStream { servers: options.shown_servers(), reason: with_source(&error) }
    })?;
    // A stream may be told to take less than the server does.
    let largest = usize::try_from(info.config.max_message_size).ok().filter(|size| *size > 0);
    let frame_bytes =
        largest.map_or(FRAME_BYTES, |size| size.saturating_sub(MESSAGE_OVERHEAD_BYTES).min(FRAME_BYTES));
    Ok(Opened { context, stream, info, made, frame_bytes, findings })
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
    /// There is no stream, and none may be made.
    Absent,
    Final(NatsOpenError),
}

/// The stream, and whether it was made just now.
async fn find_or_make(
    options: &NatsLogOptions,
    context: &Context,
    may_make: bool,
) -> Result<(Info, bool), Failure> {
    let found = match context.get_stream(&options.stream).await {
        Ok(stream) => return Ok((stream.cached_info().clone(), false)),
        Err(error) => error,
    };
    match found.kind() {
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            if !may_make {
                return Err(Failure::Absent);
            }
        }
        _ => return Err(Failure::Passing(with_source(&found))),
    }
    match context.create_stream(config(options)).await {
        Ok(stream) => {
            tracing::info!(
                stream = options.stream,
                replicas = options.replicas,
                "made the event log's stream"
            );
            Ok((stream.cached_info().clone(), true))
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                // Another replica was faster; its stream is found next time.
                Failure::Passing("made by another".to_owned())
            }
            // Servers that have just started have not all found each other yet. If there never are as many, the time to
            // open runs out, and this is what is told.
            CreateStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::CLUSTER_NO_PEERS =>
            {
                Failure::Passing(format!(
                    "the servers have no place for {} replicas: {refusal}",
                    options.replicas
                ))
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
pub(crate) fn config(options: &NatsLogOptions) -> Config {
    Config {
        name: options.stream.clone(),
        description: Some("Flotilla event log".to_owned()),
        subjects: vec![message::subject(&options.subject_prefix)],
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
pub(crate) fn check_fit(options: &NatsLogOptions, config: &Config) -> Result<(), NatsOpenError> {
    let format = config.metadata.get(FORMAT_KEY).map_or(OLDER_FORMAT, String::as_str);
    let ours = message::subject(&options.subject_prefix);
    let older = message::subjects_of_format_1(&options.subject_prefix);
    let what = if ![FORMAT, OLDER_FORMAT].contains(&format) {
        format!(
            "its format is {format:?}, this program knows {OLDER_FORMAT:?} and {FORMAT:?}; use a newer one"
        )
    } else if config.subjects != [ours.clone()] && config.subjects != [older] {
        format!("its subjects are {:?}, not {ours:?}", config.subjects)
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

/// Whether a stream is as an older release made it, or takes more subjects than it should.
fn needs_raising(options: &NatsLogOptions, config: &Config) -> bool {
    config.metadata.get(FORMAT_KEY).map(String::as_str) != Some(FORMAT)
        || config.subjects != [message::subject(&options.subject_prefix)]
}

/// Marks a stream as one of frames. Older releases refuse to open it from then on, and those that have it open can't
/// append any more: what they would send has a subject that nobody takes.
async fn raise(
    options: &NatsLogOptions,
    context: &Context,
    config: &Config,
    deadline: Instant,
) -> Result<(), NatsOpenError> {
    let mut raised = config.clone();
    raised.subjects = vec![message::subject(&options.subject_prefix)];
    raised.metadata.insert(FORMAT_KEY.to_owned(), FORMAT.to_owned());
    let mut attempt = 0;
    loop {
        match context.update_stream(&raised).await {
            Ok(_) => {
                tracing::info!(
                    stream = options.stream,
                    "the event log's stream is of format {FORMAT} from now on"
                );
                return Ok(());
            }
            Err(error) if Instant::now() >= deadline => {
                let what = format!(
                    "it cannot be raised from format {OLDER_FORMAT} to {FORMAT}: {}; let this user update the stream, or \
                     set its subjects to {:?} and its metadata {FORMAT_KEY} to {FORMAT:?}",
                    with_source(&error),
                    raised.subjects
                );
                return Err(NatsOpenError::Unfit { stream: options.stream.clone(), what });
            }
            Err(_) => rest(&mut attempt, deadline).await,
        }
    }
}

/// The position that follows what a message holds; the message's own number where that can't be told, which is at most
/// it. Makes an error better, no more.
async fn position_behind(servers: &Servers, sequence: u64) -> Position {
    if sequence == 0 {
        return Position(1);
    }
    let prefix = &servers.options.subject_prefix;
    let frame =
        servers.any_delivers(sequence, |message| message.frame(prefix)).await.ok().and_then(Result::ok);
    frame.map_or(Position(sequence), |frame| frame.last().next())
}

/// Refuses a stream with gaps: records were deleted, expired or lost. A gap that only the leader has is none of the log.
pub(crate) async fn check_whole(servers: &Servers, info: &Info) -> Result<(), NatsOpenError> {
    let state = &info.state;
    if state.messages == state.last_sequence {
        return Ok(());
    }
    let first = if state.first_sequence > 1 {
        1
    } else {
        // Which one it is makes the message better, no more: without an answer it is some position from 1 on.
        let details = servers.stream.info_builder().with_deleted(true).fetch().await.ok();
        let deleted = details.and_then(|details| details.info.state.deleted);
        deleted.and_then(|deleted| deleted.into_iter().min()).unwrap_or(1)
    };
    let missing = state.last_sequence.saturating_sub(state.messages);
    let what = format!("{missing} of {} messages are missing", state.last_sequence);
    let place = Place::Server { stream: servers.options.stream.clone(), sequence: first };
    let prefix = &servers.options.subject_prefix;
    if let Ok(Ok(_)) = servers.any_delivers(first, |message| message.frame(prefix)).await {
        tracing::error!(
            stream = servers.options.stream,
            what,
            first,
            "the stream's leader has lost messages"
        );
        return Ok(());
    }
    let position = position_behind(servers, first - 1).await;
    Err(NatsOpenError::Damaged(Damage { position, place, what }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            config.metadata.insert(FORMAT_KEY.to_owned(), "3".to_owned());
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
