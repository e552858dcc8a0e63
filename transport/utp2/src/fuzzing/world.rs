//! What the state machines' targets share: endpoints, contents, and the drive order of the crate's page.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::Input;
use crate::crypto::kdf::Secret;
use crate::handshake::{Established, Role};
use crate::wire::Cid;
use crate::wire::handshake::Params;
use crate::{
    Authorizer, BlockSink, BlockSource, Config, ContextId, Ecn, Endpoint, Event, Handle, Identity,
    PeerIdentity, SourceError,
};

pub(super) const CONTEXT: ContextId = ContextId(*b"a context's name");
pub(super) const SECRET: [u8; 32] = [42; 32];
/// What an endpoint's connection to the fuzzer is sealed and opened with, and the ids packets carry.
pub(super) const SEALED: Secret = Secret([1; 32]);
pub(super) const OPENED: Secret = Secret([2; 32]);
pub(super) const CIDS: [Cid; 2] = [*b"cid of a", *b"cid of b"];

/// More datagrams than any endpoint may send at one instant in these small worlds.
const BURST_MAX: usize = 4096;

pub(super) fn address(i: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, i % 4], 1000 + u16::from(i / 4)))
}

struct Everybody;

impl Authorizer for Everybody {
    fn authorize(&self, _: ContextId, _: &PeerIdentity) -> bool {
        true
    }
}

/// Byte `offset` of block `tag`.
fn content(tag: u64, offset: u32) -> u8 {
    let x = (tag ^ u64::from(offset / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> (8 * (offset % 8))) as u8
}

/// Gives blocks their contents, and takes them.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Per block: its length, once known, and which bytes came.
    pub(super) got: BTreeMap<u64, (Option<usize>, Vec<bool>)>,
    /// Whether what arrives was given by another `Blocks`.
    pub(super) honest: bool,
}

impl BlockSource for Blocks {
    fn read(&mut self, _: Handle, tag: u64, offset: u32, buf: &mut [u8]) -> Result<(), SourceError> {
        // One block in sixteen cannot be read beyond its first bytes.
        if tag % 16 == 15 && offset > 2000 {
            return Err(SourceError);
        }
        buf.iter_mut().zip(offset..).for_each(|(b, o)| *b = content(tag, o));
        Ok(())
    }
}

impl BlockSink for Blocks {
    fn write(&mut self, _: Handle, tag: u64, offset: u32, fin: bool, data: &[u8]) {
        assert!(!data.is_empty() && u64::from(offset) + data.len() as u64 <= 1 << 32);
        if !self.honest {
            return;
        }
        let (len, seen) = self.got.entry(tag).or_default();
        let end = offset as usize + data.len();
        if fin {
            assert!(len.is_none_or(|l| l == end), "two ends of one block");
            *len = Some(end);
        }
        seen.resize(seen.len().max(end), false);
        for (i, b) in data.iter().enumerate() {
            let o = offset as usize + i;
            assert_eq!(*b, content(tag, o as u32), "block {tag:x} byte {o}");
            seen[o] = true;
        }
        assert!(len.is_none_or(|l| seen.len() <= l), "bytes behind the end");
    }
}

impl Blocks {
    pub(super) fn is_whole(&self, tag: u64, len: u32) -> bool {
        let whole =
            |(l, seen): &(Option<usize>, Vec<bool>)| *l == Some(len as usize) && seen.iter().all(|s| *s);
        self.got.get(&tag).is_some_and(whole)
    }
}

/// Small limits, so that few bytes reach them.
pub(super) fn config(input: &mut Input<'_>) -> Config {
    let max_message = [100, 1000, 5000][usize::from(input.u8() % 3)];
    Config {
        max_datagram: 1200 + 4 * u16::from(input.u8()),
        receive_window: [8 << 10, 32 << 10, 1 << 20, 16 << 20][usize::from(input.u8() % 4)],
        max_message,
        message_buffer: (max_message + 4) * (1 + usize::from(input.u8() % 3)),
        max_queued_blocks: 16,
        max_connections: 6,
        max_handshakes: 3,
        max_in_flight_packets: [16, 64, 1024][usize::from(input.u8() % 3)],
        replay_window: 64 << (input.u8() % 5),
        max_ack_ranges: 16 + usize::from(input.u8()) % 64,
        key_update_after: 1 + u64::from(input.u8()),
        ..Config::default()
    }
}

pub(super) fn endpoint(config: &Config, i: u8) -> Endpoint {
    let identity = Identity::new([i; 32], vec![i; 100]);
    let mut endpoint = Endpoint::new(config.clone(), identity, Box::new(Everybody), [100 + i; 32]);
    endpoint.add_context(CONTEXT, &SECRET);
    endpoint
}

/// A connection of end `i` to the other, as after a handshake with a peer of this configuration.
pub(super) fn established(peer: &Config, i: usize, rtt: Duration) -> Established {
    let params = Params {
        max_datagram: peer.max_datagram,
        receive_window: peer.receive_window,
        message_limit: peer.message_buffer as u32,
        max_message: peer.max_message as u32,
        idle_timeout_ms: peer.idle_timeout.as_millis() as u32,
        reset_token: [0; 16],
    };
    let (seal, open) = if i == 0 { (SEALED, OPENED) } else { (OPENED, SEALED) };
    Established {
        seal,
        open,
        remote_cid: CIDS[1 - i],
        remote: address(1 - i as u8),
        peer: PeerIdentity { public_key: [0; 32], credential: vec![] },
        params,
        rtt,
        resumption: Secret([3; 32]),
        role: if i == 0 { Role::Initiator } else { Role::Responder },
        resumed: false,
        proved: None,
    }
}

/// An endpoint with its application.
#[derive(Debug)]
pub(super) struct End {
    pub(super) endpoint: Endpoint,
    pub(super) blocks: Blocks,
    /// The connection the application cares about.
    pub(super) handle: Option<Handle>,
    pub(super) messages: Vec<Vec<u8>>,
    pub(super) sent: Vec<u64>,
    pub(super) failed: Vec<u64>,
    pub(super) connected: bool,
    pub(super) closed: Option<crate::CloseReason>,
    pub(super) segments: usize,
    drained: u32,
}

impl End {
    pub(super) fn new(endpoint: Endpoint, segments: usize) -> Self {
        Self {
            endpoint,
            blocks: Blocks::default(),
            handle: None,
            messages: vec![],
            sent: vec![],
            failed: vec![],
            connected: false,
            closed: None,
            segments,
            drained: 0,
        }
    }

    /// Everything the endpoint wants to send now, datagram by datagram, and its events; then its books are looked at.
    pub(super) fn drain(&mut self, now: Instant) -> Vec<(SocketAddr, Ecn, Vec<u8>)> {
        let mut out = vec![];
        let mut buf = vec![];
        loop {
            while let Some(t) = self.endpoint.poll_transmit(now, self.segments, &mut buf, &mut self.blocks) {
                assert!(t.len == buf.len() && t.len > 0);
                let size = t.segment_size.unwrap_or(t.len);
                assert!(size <= t.len && t.len.div_ceil(size) <= self.segments.max(1));
                out.extend(buf.chunks(size).map(|d| (t.remote, t.ecn, d.to_vec())));
                assert!(out.len() < BURST_MAX, "an endless burst");
            }
            let mut told = 0;
            while let Some((handle, event)) = self.endpoint.poll_event() {
                told += 1;
                assert!(told < 100_000, "endless events");
                self.on_event(handle, event);
            }
            if told == 0 {
                break;
            }
        }
        // It looks at every packet in flight: often enough is every now and then.
        self.drained += 1;
        if self.drained < 32 || self.drained.is_multiple_of(16) {
            self.endpoint.check();
        }
        out
    }

    fn on_event(&mut self, handle: Handle, event: Event) {
        if *self.handle.get_or_insert(handle) != handle {
            return;
        }
        assert!(self.closed.is_none(), "{event:?} after the end");
        match event {
            Event::Connected => assert!(!core::mem::replace(&mut self.connected, true)),
            Event::Message(m) => self.messages.push(m),
            Event::BlockSent { tag } => self.sent.push(tag),
            Event::BlockFailed { tag } => self.failed.push(tag),
            Event::Closed(why) => self.closed = Some(why),
            _ => {}
        }
    }

    /// Acts on what is due, until nothing is.
    pub(super) fn timeout(&mut self, now: Instant) -> Vec<(SocketAddr, Ecn, Vec<u8>)> {
        let mut out = vec![];
        for _ in 0..1000 {
            if self.endpoint.poll_timeout().is_none_or(|t| t > now) {
                return out;
            }
            self.endpoint.handle_timeout(now);
            out.extend(self.drain(now));
        }
        panic!("at {now:?} something is due for ever: {}", self.endpoint.tell());
    }
}
