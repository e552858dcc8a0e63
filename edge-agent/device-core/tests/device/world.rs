//! A fleet with one source and one device, and a firmware that does what there is to do, however often it is started.

use std::collections::{BTreeMap, BTreeSet};

use agent_proto::TrustBundle;
use agent_proto::limits::BLOCK_LEN;
use device_core::limits::PIECE_LEN;
use device_core::{
    BeginError, Begun, Board, Device, Error, Layout, OpenError, Payload, Provision, Region, Slot, SlotState,
    Stored, Taken, Trailer,
};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, CommandBody, CommandId, FinishRun, JobId, JoinRun, PeerHint, Report, ReportBody, Role,
    RunAgentState, RunId, Signed, Timestamp, TransferStats,
};
use sync_core::manifest::{
    BlockHash, Entry, Kind, Manifest, ManifestHead, Mtime, encode, manifest_block_hashes,
};

use crate::flash::{Chance, Flash};

pub(crate) const BOARD: Board = Board::named("mps2-an386");
pub(crate) const RUN: RunId = RunId([0x11; 16]);
pub(crate) const NOW: Timestamp = Timestamp(1_790_000_000_000);

pub(crate) const LAYOUT: Layout = Layout {
    identity: Region { start: 0, len: 0x2000 },
    journal: Region { start: 0x2000, len: 0x10000 },
    segment_len: 0x4000,
    manifests: [Region { start: 0x12000, len: 0x2000 }, Region { start: 0x14000, len: 0x2000 }],
    slots: [Region { start: 0x18000, len: 0x20000 }, Region { start: 0x38000, len: 0x20000 }],
};
pub(crate) const FLASH_LEN: usize = 0x58000;

pub(crate) fn root() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

pub(crate) fn command_key() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

pub(crate) fn source() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

pub(crate) fn device_key() -> SigningKey {
    SigningKey::from_bytes(&[4; 32])
}

pub(crate) fn me() -> AgentId {
    AgentId::of_key(&device_key().verifying_key().to_bytes())
}

pub(crate) fn bundle(version: u64, command_keys: Vec<[u8; 32]>) -> TrustBundle {
    TrustBundle {
        version,
        root_key: root().verifying_key().to_bytes(),
        command_keys,
        credential_keys: vec![[9; 32]],
        ca_certificate: vec![5; 300],
    }
}

/// A device that has just been made, with version 1 running in slot A.
pub(crate) fn device<const W: usize>() -> (Flash<W>, Device<Flash<W>>) {
    let flash = Flash::<W>::new(FLASH_LEN);
    let device = provision(&flash).expect("new flash");
    (flash, device)
}

pub(crate) fn provision<const W: usize>(flash: &Flash<W>) -> Result<Device<Flash<W>>, OpenError> {
    let trust = bundle(1, vec![command_key().verifying_key().to_bytes()]).sign(&root());
    let as_whom = Provision {
        seed: device_key().to_bytes(),
        root_key: root().verifying_key().to_bytes(),
        trust: &trust,
        board: BOARD,
        version: 1,
        running: Slot::A,
        now: NOW,
    };
    Device::provision(flash.clone(), LAYOUT, &as_whom)
}

pub(crate) fn open<const W: usize>(flash: &Flash<W>) -> Result<Device<Flash<W>>, OpenError> {
    Device::open(flash.clone(), LAYOUT, BOARD)
}

/// An image and what its source says of it.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) head: Signed,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// Content that a seed determines, with a trailer; `len` is all of it.
    pub(crate) fn new(seed: u64, len: usize, trailer: Trailer) -> Self {
        let mut chance = Chance(seed);
        let mut bytes: Vec<u8> = (0..len - Trailer::LEN).map(|_| chance.draw() as u8).collect();
        bytes.extend(trailer.encode());
        Self::of(bytes)
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let entry = Entry::new(
            b"firmware.bin",
            0o644,
            Mtime { seconds: 1, nanos: 0 },
            Kind::file(bytes.len() as u64),
        );
        let hashes: Vec<_> = bytes.chunks(BLOCK_LEN as usize).map(BlockHash::of).collect();
        Self::with_manifest(bytes, encode([(entry, hashes)]).expect("one file"))
    }

    pub(crate) fn with_manifest(bytes: Vec<u8>, manifest: Vec<u8>) -> Self {
        let read = Manifest::open(&manifest[..]).expect("a manifest");
        let id = AgentId::of_key(&source().verifying_key().to_bytes());
        let head = ManifestHead::of(RUN, id, &read, &manifest_block_hashes(&manifest)).sign(&source());
        Self { bytes, head, manifest }
    }

    pub(crate) fn payload(&self) -> Payload<'_> {
        let key = source().verifying_key().to_bytes();
        Payload::open(&self.head, &self.manifest, RUN, &key).expect("its own head")
    }

    pub(crate) fn block(&self, block: u32) -> &[u8] {
        self.bytes.chunks(BLOCK_LEN as usize).nth(block as usize).expect("a block of it")
    }
}

pub(crate) fn version(version: u64) -> Trailer {
    Trailer { board: BOARD, version }
}

pub(crate) fn command(sequence: u64, body: impl Into<CommandBody>) -> Command {
    Command {
        id: CommandId([sequence as u8; 16]),
        audience: me(),
        sequence,
        issued: NOW,
        not_before: NOW,
        expires: Timestamp(NOW.0 + 86_400_000),
        body: body.into(),
    }
}

pub(crate) fn join(run: RunId) -> JoinRun {
    let key = source().verifying_key().to_bytes();
    let peer = PeerHint {
        agent: AgentId::of_key(&key),
        public_key: key,
        role: Role::Source,
        addresses: vec!["192.0.2.1:7000".into()],
    };
    JoinRun {
        run,
        job: JobId([7; 16]),
        job_name: "firmware".into(),
        role: Role::Destination,
        path: b"firmware".to_vec(),
        source: peer.agent,
        peers: vec![peer],
        trackers: vec![],
        sealed_secret: vec![8; 80],
    }
}

/// What happened outside the device, over all its starts.
#[derive(Clone, Default)]
pub(crate) struct Outside {
    /// Reports as they came home.
    pub(crate) home: BTreeMap<u64, Signed>,
    /// Blocks whose storing returned.
    pub(crate) confirmed: BTreeSet<u32>,
    pub(crate) fetched: u64,
    pub(crate) reused: u64,
    pub(crate) cursor: u64,
    pub(crate) order_seen: bool,
    pub(crate) trials: u32,
    pub(crate) made: u64,
}

/// Why the firmware came to an end.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// Everything is done and told.
    Done,
    /// It restarts by itself.
    Restart,
    /// An operation failed: no power, mostly.
    Failed,
}

macro_rules! go {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(_) => return End::Failed,
        }
    };
}

/// Starts the device and does what there is to do until it restarts, fails or is done.
pub(crate) fn run<const W: usize>(flash: &Flash<W>, image: &Image, outside: &mut Outside) -> End {
    flash.0.borrow_mut().forbidden = None;
    let mut device = match open(flash) {
        Ok(device) => device,
        Err(OpenError::Flash) => return End::Failed,
        Err(e) => panic!("the device does not open: {e}"),
    };
    let protect = |active: Slot| flash.0.borrow_mut().forbidden = Some(LAYOUT.slots[active.index()]);
    protect(device.active());
    // What was so before is so now.
    assert!(device.cursor() >= outside.cursor, "the cursor went back");
    assert!(*device.waiting().end() >= outside.made, "reports went back");
    assert!(device.known_time() >= NOW);
    if outside.order_seen && device.cursor() == 1 {
        assert!(device.order().is_ok_and(|order| order.is_some()), "the order is gone");
    }
    if device.spare() == SlotState::Receiving {
        let spare = device.active().other();
        for &block in &outside.confirmed {
            assert!(device.holds(spare, block), "block {block} is gone");
        }
    }
    let booted = device.boot();
    let running = booted.slot;
    if running != device.active() {
        outside.trials += 1;
        let mut start = vec![0; 64];
        assert_eq!(device.read(running, 0, 0, &mut start), Ok(true));
        assert_eq!(start, image.bytes[..64]);
    }
    if device.cursor() == 0 {
        let taken = go!(device.take(&command(1, join(RUN)).sign(&command_key()), Some(NOW)));
        assert!(matches!(taken, Taken::Obey(_)), "{taken:?}");
        outside.order_seen = true;
        outside.cursor = 1;
        go!(device.report_state(RunAgentState::FetchingManifest, Some(NOW)));
    }
    if device.cursor() == 1 {
        if go!(device.confirm(running)) {
            protect(device.active());
        }
        match go!(work(&mut device, image, outside)) {
            Some(RunAgentState::Transferring) => {
                return End::Restart;
            }
            Some(state) => {
                go!(device.report_end(state, TransferStats::default(), Some(NOW)));
            }
            None => {}
        }
    }
    if device.cursor() == 1 {
        let finish = command(2, FinishRun { run: RUN }).sign(&command_key());
        assert!(matches!(go!(device.take(&finish, Some(NOW))), Taken::Obey(_)));
        outside.cursor = 2;
    }
    outside.made = *device.waiting().end();
    for number in device.waiting() {
        let report = go!(device.report(number)).expect("a report that waits is there");
        let again = outside.home.insert(number, report.clone());
        assert!(again.is_none_or(|before| before == report), "report {number} changed");
    }
    go!(device.stored(*device.waiting().end()));
    End::Done
}

/// Fetches the image; how the run ended, or `Transferring` when it is to be tried.
fn work<const W: usize>(
    device: &mut Device<Flash<W>>,
    image: &Image,
    outside: &mut Outside,
) -> Result<Option<RunAgentState>, Error> {
    match device.begin(&image.payload()) {
        Ok(Begun::Active) => return Ok(Some(RunAgentState::Done)),
        Ok(Begun::Ready) => {
            device.activate()?;
            return Ok(Some(RunAgentState::Transferring));
        }
        Ok(Begun::OnTrial) => return Ok(Some(RunAgentState::Transferring)),
        Ok(Begun::Anew) => assert!(outside.confirmed.is_empty(), "begun anew"),
        Ok(Begun::Resumed) => {}
        Err(BeginError::FailedBefore) => {
            assert!(device.gave_up());
            return Ok(Some(RunAgentState::Failed));
        }
        Err(BeginError::Device(e)) => return Err(e),
        Err(BeginError::SlotWorn) => return Err(Error::Flash),
        Err(e) => panic!("{e}"),
    }
    let missing: Vec<u32> = device.missing().collect();
    for block in missing {
        assert!(!outside.confirmed.contains(&block), "block {block} is fetched again");
        let stored = device.reuse(block).map_err(|_| Error::Flash)?;
        if stored.is_some() {
            outside.reused += 1;
        } else {
            outside.fetched += 1;
            let stored = fetch(device, image, block)?;
            assert!(matches!(stored, Stored::Kept | Stored::Last), "{stored:?}");
        }
        outside.confirmed.insert(block);
    }
    assert!(device.activate()?);
    Ok(Some(RunAgentState::Transferring))
}

/// Gives the device a block, its pieces not in order.
pub(crate) fn fetch<const W: usize>(
    device: &mut Device<Flash<W>>,
    image: &Image,
    block: u32,
) -> Result<Stored, Error> {
    device.start_block(block).map_err(|_| Error::Flash)?;
    let pieces: Vec<_> = image.block(block).chunks(PIECE_LEN as usize).enumerate().collect();
    let (even, odd): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(nth, _)| nth % 2 == 0);
    for (nth, piece) in odd.into_iter().chain(even.into_iter().rev()) {
        device.put(block, nth as u32 * PIECE_LEN, piece).map_err(|_| Error::Flash)?;
    }
    device.finish_block(block).map_err(|_| Error::Flash)
}

/// Fetches all that is missing; what became of the last block.
pub(crate) fn fetch_all<const W: usize>(device: &mut Device<Flash<W>>, image: &Image) -> Stored {
    let missing: Vec<u32> = device.missing().collect();
    let mut stored = Stored::Kept;
    for block in missing {
        stored = fetch(device, image, block).expect("power is there");
    }
    stored
}

pub(crate) fn reports(outside: &Outside) -> Vec<ReportBody> {
    let key = device_key().verifying_key().to_bytes();
    let open = |(number, signed): (&u64, &Signed)| {
        let report = Report::open(signed, &key).expect("signed by the device");
        assert_eq!(report.sequence, *number);
        report.body
    };
    outside.home.iter().map(open).collect()
}
