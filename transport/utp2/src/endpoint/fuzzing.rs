//! Connections whose keys the fuzzer knows, and a look at the endpoint's books, for [`crate::fuzzing`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use timebase::Instant;

use super::Endpoint;
use crate::connection::session::Session;
use crate::crypto::kdf::Secret;
use crate::handshake::Established;
use crate::wire::Cid;
use crate::{Connection, ContextId, Handle, PathMemory, PeerIdentity};

impl Endpoint {
    /// Takes over a connection as if a handshake had led to it; it answers to `cid`.
    pub(crate) fn adopt(
        &mut self,
        now: Instant,
        context: ContextId,
        established: Established,
        cid: Cid,
        initiator: bool,
    ) -> Handle {
        let config = &self.config;
        let make = |handle| {
            let session = Session::new(now, handle, config, established, [5; 32]);
            Connection::adopted(handle, context, initiator, Box::new(session))
        };
        let handle = self.slots.insert(make, cid, None);
        self.cids.insert(cid, handle.slot);
        self.after(handle.slot);
        handle
    }

    /// A ticket as this endpoint would give to a peer that proved itself just now.
    pub(crate) fn ticket(
        &self,
        now: Instant,
        context: ContextId,
        peer: &PeerIdentity,
        secret: &Secret,
        memory: Option<PathMemory>,
    ) -> Option<Vec<u8>> {
        let proved = self.tickets.time(now);
        self.tickets.issue(now, [7; 16], context, peer, secret, proved, memory).map(|t| t.0)
    }

    /// How its connections stand, for a finding.
    pub(crate) fn tell(&mut self) -> String {
        let mut out = String::new();
        for slot in self.slots.occupied() {
            out += &self.slots.get_mut(slot).expect("occupied").tell();
            out += "\n";
        }
        out
    }

    /// Whether the endpoint's books agree with its connections', and stay within the limits.
    pub(crate) fn check(&mut self) {
        let occupied = self.slots.occupied();
        assert_eq!(occupied.len(), self.slots.len());
        assert!(self.slots.len() <= self.config.max_connections, "{} connections", self.slots.len());
        assert!(self.inits.len() <= self.slots.len());
        assert!(self.answers.len() <= super::MAX_ANSWERS);
        let mut half_open = 0;
        for slot in occupied {
            let connection = self.slots.get_mut(slot).expect("occupied");
            connection.check();
            half_open += usize::from(connection.is_half_open());
        }
        assert_eq!(self.half_open.len(), half_open);
        assert!(half_open <= self.config.max_handshakes);
    }
}
