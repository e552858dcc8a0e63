//! The source of a run: `sync_core::Origin` over a real endpoint, as an agent runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_proto::limits::BLOCK_LEN;
use agent_proto::peer::{BlockAddress, PeerMessage};
use agent_proto::{Credential, RunSecret};
use device_core::Trailer;
use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Command, CommandId, JobId, JoinRun, PeerHint, Role, RunId, Signed, Timestamp};
use sync_core::config::{OriginConfig, UploadConfig};
use sync_core::manifest::{
    BlockHash, Entry, Kind, Manifest, ManifestHead, Mtime, encode, manifest_block_hashes,
};
use sync_core::{Action, Origin};
use timebase::Instant;
use utp2::{ContextId, Handle, Identity};
use utp2_tokio::{BlockEvent, BlockSink, BlockSource, Connection, Endpoint, EndpointConfig, LossInjector};

use crate::board::{BOARD, command_key, device_key, root_key};

const RUN: RunId = RunId([0x11; 16]);

pub(crate) fn issuer_key() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

fn source_key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn secret() -> RunSecret {
    RunSecret::derive(&[6; 32], RUN)
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp(since.as_millis() as u64)
}

/// What an agent of this fleet shows others.
pub(crate) fn credential(key: &SigningKey, name: &str) -> Vec<u8> {
    let credential = Credential {
        version: 1,
        fleet: root_key().verifying_key().to_bytes(),
        public_key: key.verifying_key().to_bytes(),
        name: name.into(),
        not_before: Timestamp(now().0 - 3_600_000),
        not_after: Timestamp(now().0 + 3_600_000),
    };
    credential.sign(&issuer_key())
}

/// An image and what its source says of it.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    manifest: Vec<u8>,
    head: Signed,
}

impl Image {
    /// Version 2 for the board, with content that a seed determines.
    pub(crate) fn new(seed: u8, len: usize) -> Self {
        let mut state = u64::from(seed);
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 56) as u8
        })
        .take(len - Trailer::LEN)
        .collect();
        bytes.extend(Trailer { board: BOARD, version: 2 }.encode());
        let kind = Kind::file(bytes.len() as u64);
        let entry = Entry::new(b"firmware.bin", 0o644, Mtime { seconds: 1, nanos: 0 }, kind);
        let hashes: Vec<_> = bytes.chunks(BLOCK_LEN as usize).map(BlockHash::of).collect();
        let manifest = encode([(entry, hashes)]).expect("one file");
        let read = Manifest::open(&manifest[..]).expect("a manifest");
        let id = AgentId::of_key(&source_key().verifying_key().to_bytes());
        let head = ManifestHead::of(RUN, id, &read, &manifest_block_hashes(&manifest)).sign(&source_key());
        Self { bytes, manifest, head }
    }
}

/// The bytes of the image, and how often they were asked for.
struct Bytes {
    image: Vec<u8>,
    manifest: Vec<u8>,
    pieces: AtomicU64,
}

impl Bytes {
    fn block(&self, address: BlockAddress) -> &[u8] {
        let bytes = if address.is_manifest() { &self.manifest } else { &self.image };
        bytes.chunks(BLOCK_LEN as usize).nth(address.index() as usize).unwrap_or_default()
    }
}

impl BlockSource for Bytes {
    fn read(&self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let address = BlockAddress(tag);
        if !address.is_manifest() {
            self.pieces.fetch_add(1, Ordering::Relaxed);
        }
        let piece = self.block(address).get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl BlockSink for Bytes {
    fn write(&self, _: Handle, tag: u64, _: u32, _: bool, _: &[u8]) {
        panic!("the device sent block {tag} to the source");
    }
}

/// What was given, and what must not be given any more.
#[derive(Default)]
struct Given {
    times: BTreeMap<u64, u32>,
    kept: BTreeSet<u64>,
    twice: Vec<u64>,
}

/// The source's side of the run.
pub(crate) struct Source {
    endpoint: Endpoint,
    bytes: Arc<Bytes>,
    given: Arc<Mutex<Given>>,
}

impl Source {
    /// Serves an image over a path that loses this share of the datagrams, each way.
    pub(crate) fn start(image: &Image, loss: f64) -> Self {
        let identity = Identity::new(source_key().to_bytes(), credential(&source_key(), "source"));
        let fleet = root_key().verifying_key().to_bytes();
        let issuer = [issuer_key().verifying_key().to_bytes()];
        let device = device_key().verifying_key().to_bytes();
        let mut config = EndpointConfig::new(identity, move |_, peer| {
            peer.public_key == device
                && Credential::open(&peer.credential, &issuer, &fleet, &peer.public_key, now()).is_ok()
        });
        if loss > 0.0 {
            config.fault = Some(LossInjector { loss, delay: Duration::ZERO, seed: 1 });
        }
        let (endpoint, mut incoming) =
            Endpoint::bind("127.0.0.1:0".parse().expect("an address"), config).expect("a socket");
        let bytes = Arc::new(Bytes {
            image: image.bytes.clone(),
            manifest: image.manifest.clone(),
            pieces: AtomicU64::new(0),
        });
        let context = ContextId(secret().utp2_context());
        endpoint.add_context(context, secret().utp2_secret(), bytes.clone(), bytes.clone());
        let given = Arc::new(Mutex::new(Given::default()));
        let blocks = image.bytes.len().div_ceil(BLOCK_LEN as usize) as u64;
        let (head, hashes) = (image.head.clone(), manifest_block_hashes(&image.manifest));
        let (counted, served) = (given.clone(), bytes.clone());
        tokio::spawn(async move {
            while let Some(connection) = incoming.accept().await {
                let (head, hashes) = (head.clone(), hashes.clone());
                let (config, uploads) = (OriginConfig::default(), UploadConfig::default());
                let origin = Origin::new("test".into(), head, hashes, blocks, config, uploads);
                tokio::spawn(serve(origin, connection, served.clone(), counted.clone()));
            }
        });
        Self { endpoint, bytes, given }
    }

    /// The signed command that sends the device here.
    pub(crate) fn order(&self) -> Signed {
        let (source, device) =
            (source_key().verifying_key().to_bytes(), device_key().verifying_key().to_bytes());
        let context = agent_proto::link::seal_context(RUN);
        let sealed_secret =
            agent_proto::seal(&device, &context, secret().as_bytes(), [9; 32]).expect("a good key");
        // The emulator's network has the host's loopback there.
        let addresses = vec![format!("10.0.2.2:{}", self.endpoint.local_addr().port())];
        let id = AgentId::of_key(&source);
        let peer = PeerHint { agent: id, public_key: source, role: Role::Source, addresses };
        let join = JoinRun {
            run: RUN,
            job: JobId([7; 16]),
            job_name: "firmware".into(),
            role: Role::Destination,
            path: b"firmware".to_vec(),
            source: id,
            peers: vec![peer],
            trackers: Vec::new(),
            sealed_secret,
        };
        let command = Command {
            id: CommandId([1; 16]),
            audience: AgentId::of_key(&device),
            sequence: 1,
            issued: now(),
            not_before: now(),
            expires: Timestamp(now().0 + 3_600_000),
            body: join.into(),
        };
        command.sign(&command_key())
    }

    /// Pieces of blocks that were sent, repeated ones included.
    pub(crate) fn pieces(&self) -> u64 {
        self.bytes.pieces.load(Ordering::Relaxed)
    }

    /// Blocks that were given, repeated ones included.
    pub(crate) fn given(&self) -> u32 {
        self.given.lock().expect("nobody panics with it").times.values().sum()
    }

    /// The device has said that it has kept this block.
    pub(crate) fn must_not_give(&self, block: u64) {
        let mut given = self.given.lock().expect("nobody panics with it");
        given.kept.insert(block);
        assert!(given.twice.is_empty(), "asked for again: {:?}", given.twice);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let given = self.given.lock().expect("nobody panics with it");
            assert!(given.twice.is_empty(), "asked for again: {:?}", given.twice);
        }
    }
}

/// One session.
async fn serve(mut origin: Origin, connection: Connection, bytes: Arc<Bytes>, given: Arc<Mutex<Given>>) {
    let began = std::time::Instant::now();
    let now = || Instant::from_micros(1 + began.elapsed().as_micros() as u64);
    let peer = AgentId::of_key(&connection.peer().public_key);
    origin.handle_connected(now(), peer);
    loop {
        while let Some(action) = origin.poll_action(now()) {
            match action {
                Action::Send { message, .. } => {
                    if connection.send_message(&message.encode()).await.is_err() {
                        return;
                    }
                }
                Action::Upload { block, priority, .. } => {
                    if !block.is_manifest() {
                        let mut given = given.lock().expect("nobody panics with it");
                        *given.times.entry(block.index()).or_default() += 1;
                        if given.kept.contains(&block.index()) {
                            given.twice.push(block.index());
                        }
                    }
                    let len = bytes.block(block).len() as u32;
                    if connection.send_block(block.0, len, priority).is_err() {
                        return;
                    }
                }
                Action::CancelUpload { block, .. } => connection.cancel_block(block.0),
                other => panic!("{other:?}"),
            }
        }
        let due = origin.poll_timeout().map(|at| at.saturating_since(now()));
        tokio::select! {
            message = connection.recv_message() => match message {
                Ok(message) => match PeerMessage::decode(&message) {
                    Ok(message) => origin.handle_message(now(), peer, message),
                    Err(e) => panic!("the device sent what is no message: {e:?}"),
                },
                Err(_) => return,
            },
            event = connection.recv_event() => match event {
                Ok(BlockEvent::Sent { tag }) => origin.handle_sent(now(), peer, BlockAddress(tag)),
                Ok(other) => panic!("{other:?}"),
                Err(_) => return,
            },
            () = tokio::time::sleep(due.unwrap_or(Duration::MAX)) => origin.handle_timeout(now()),
        }
    }
}
