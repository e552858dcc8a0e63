//! Handshake messages (PROTOCOL.md §3.3–§3.7).

use alloc::vec::Vec;

use super::header::{HANDSHAKE_HEADER, Kind, TAG, emit_handshake, emit_handshake_of};
use super::{Cid, Malformed, Reader};
use crate::Config;
use crate::config::MIN_DATAGRAM;
use crate::handshake::ticket::MAX_TICKET;
use crate::identity::MAX_CREDENTIAL;

/// Bytes of A and B: group 2048.
pub(crate) const GROUP: usize = 256;
/// Suite of a full handshake: SRP-6a/2048/SHA-256, Ed25519, HKDF-SHA-256, AES-128-GCM. [`SUITE_RESUME`] is the other.
pub(crate) const SUITE: u8 = 1;
/// Bytes of INIT and of REPLY that enter the transcript (§5.4).
pub(crate) const TRANSCRIPT_PART: usize = 326;
/// Length of a cookie (§5.3).
pub(crate) const COOKIE: usize = 24;
/// Bytes of the body in one PROVE of the smallest datagram.
pub(crate) const FRAGMENT: usize = MIN_DATAGRAM as usize - PROVE_HEADER - TAG;
/// Header of PROVE with index and count.
pub(crate) const PROVE_HEADER: usize = HANDSHAKE_HEADER + 2;
/// Most fragments a body may have.
pub(crate) const MAX_FRAGMENTS: u8 = 3;
const MAX_EXTENSIONS: usize = 256;
/// Suite of a handshake with a ticket: X25519, HKDF-SHA-256, AES-128-GCM.
pub(crate) const SUITE_RESUME: u8 = 3;
/// Bytes of RESUME and of RESUMED that enter the transcript as they are: header, CID, suite, nonce, share (§5.8).
pub(crate) const RESUME_HEAD: usize = HANDSHAKE_HEADER + 8 + 1 + 32 + 32;
/// Where the ticket's length lies in RESUME: behind the cookie, whose place is always kept.
pub(crate) const RESUME_TICKET: usize = RESUME_HEAD + 2 + COOKIE;
/// Length of a token that proves a reset (§10.7).
pub(crate) const TOKEN: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Init<'a> {
    pub(crate) source: Cid,
    pub(crate) suite: u8,
    pub(crate) nonce: [u8; 32],
    pub(crate) tag: [u8; 16],
    pub(crate) a: &'a [u8; GROUP],
    pub(crate) cookie: &'a [u8],
}

impl<'a> Init<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        if datagram.len() < usize::from(MIN_DATAGRAM) {
            return Err(Malformed);
        }
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let (source, suite, nonce, tag) = (r.array()?, r.u8()?, r.array()?, r.array()?);
        let a = r.bytes(GROUP)?.try_into().map_err(|_| Malformed)?;
        let len = usize::from(r.u16()?);
        if len != 0 && len != COOKIE {
            return Err(Malformed);
        }
        Ok(Self { source, suite, nonce, tag, a, cookie: r.bytes(len)? })
    }

    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        emit_handshake(out, Kind::Init, &[0; 8]);
        out.extend_from_slice(&self.source);
        out.push(self.suite);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.tag);
        out.extend_from_slice(self.a);
        debug_assert_eq!(out.len() - start, TRANSCRIPT_PART);
        out.extend_from_slice(&(self.cookie.len() as u16).to_be_bytes());
        out.extend_from_slice(self.cookie);
        out.resize(start + usize::from(MIN_DATAGRAM), 0);
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry<'a> {
    pub(crate) cookie: &'a [u8; COOKIE],
}

impl<'a> Retry<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let len = usize::from(r.u16()?);
        Ok(Self { cookie: r.bytes(len)?.try_into().map_err(|_| Malformed)? })
    }

    pub(crate) fn emit(&self, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Retry, to);
        out.extend_from_slice(&(COOKIE as u16).to_be_bytes());
        out.extend_from_slice(self.cookie);
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) source: Cid,
    pub(crate) suite: u8,
    pub(crate) nonce: [u8; 32],
    pub(crate) salt: [u8; 16],
    pub(crate) b: &'a [u8; GROUP],
}

impl<'a> Reply<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let (source, suite, nonce, salt) = (r.array()?, r.u8()?, r.array()?, r.array()?);
        let b = r.bytes(GROUP)?.try_into().map_err(|_| Malformed)?;
        Ok(Self { source, suite, nonce, salt, b })
    }

    pub(crate) fn emit(&self, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Reply, to);
        out.extend_from_slice(&self.source);
        out.push(self.suite);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(self.b);
    }
}

/// Index and count of a PROVE fragment; what is sealed follows the first [`PROVE_HEADER`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProveHead {
    pub(crate) index: u8,
    pub(crate) count: u8,
}

impl ProveHead {
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let (index, count) = (r.u8()?, r.u8()?);
        if count == 0 || count > MAX_FRAGMENTS || index >= count || r.rest().len() < TAG {
            return Err(Malformed);
        }
        Ok(Self { index, count })
    }

    pub(crate) fn emit(&self, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Prove, to);
        out.extend_from_slice(&[self.index, self.count]);
    }
}

/// Codes of an ALERT (§3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alert {
    Refused = 1,
    Busy = 2,
    Version = 3,
    /// The ticket is not taken; a full handshake may be.
    Ticket = 4,
}

impl Alert {
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        match datagram.get(HANDSHAKE_HEADER) {
            Some(1) => Ok(Self::Refused),
            Some(2) => Ok(Self::Busy),
            Some(3) => Ok(Self::Version),
            Some(4) => Ok(Self::Ticket),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn emit(self, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Alert, to);
        out.push(self as u8);
    }

    /// "No common version", as who speaks `version` reads it (§3.7).
    pub(crate) fn emit_version(version: u32, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake_of(version, out, Kind::Alert, to);
        out.push(Self::Version as u8);
    }
}

/// The initiator's CID in an INIT or RESUME of another version (§3.2), whatever else that holds.
pub(crate) fn asker_of_any_version(datagram: &[u8]) -> Result<Cid, Malformed> {
    if datagram.len() < usize::from(MIN_DATAGRAM) {
        return Err(Malformed);
    }
    Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?).array()
}

/// What each side tells about itself in its proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    pub(crate) max_datagram: u16,
    pub(crate) receive_window: u32,
    pub(crate) message_limit: u32,
    pub(crate) max_message: u32,
    pub(crate) idle_timeout_ms: u32,
    /// Proves that its sender lost the connection (§10.7).
    pub(crate) reset_token: [u8; TOKEN],
}

impl Params {
    /// What we tell by our settings.
    pub(crate) fn of(c: &Config, reset_token: [u8; TOKEN]) -> Self {
        Self {
            max_datagram: c.max_datagram,
            receive_window: c.receive_window,
            message_limit: u32::try_from(c.message_buffer).unwrap_or(u32::MAX),
            max_message: u32::try_from(c.max_message).unwrap_or(u32::MAX),
            idle_timeout_ms: u32::try_from(c.idle_timeout.as_millis()).unwrap_or(u32::MAX),
            reset_token,
        }
    }

    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let params = Self {
            max_datagram: r.u16()?,
            receive_window: r.u32()?,
            message_limit: r.u32()?,
            max_message: r.u32()?,
            idle_timeout_ms: r.u32()?,
            reset_token: r.array()?,
        };
        if params.max_datagram < MIN_DATAGRAM { Err(Malformed) } else { Ok(params) }
    }

    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.max_datagram.to_be_bytes());
        out.extend_from_slice(&self.receive_window.to_be_bytes());
        out.extend_from_slice(&self.message_limit.to_be_bytes());
        out.extend_from_slice(&self.max_message.to_be_bytes());
        out.extend_from_slice(&self.idle_timeout_ms.to_be_bytes());
        out.extend_from_slice(&self.reset_token);
    }
}

/// The fields RESUME and RESUMED have in common.
#[derive(Clone, Debug)]
pub(crate) struct ResumeHead {
    pub(crate) source: Cid,
    pub(crate) suite: u8,
    pub(crate) nonce: [u8; 32],
    pub(crate) share: [u8; 32],
}

impl ResumeHead {
    fn parse(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { source: r.array()?, suite: r.u8()?, nonce: r.array()?, share: r.array()? })
    }

    fn emit_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source);
        out.push(self.suite);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.share);
    }

    /// A RESUME up to the end of its ticket.
    pub(crate) fn emit(&self, cookie: &[u8], ticket: &[u8], out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Resume, &[0; 8]);
        self.emit_fields(out);
        out.extend_from_slice(&(cookie.len() as u16).to_be_bytes());
        out.extend_from_slice(cookie);
        out.resize(RESUME_TICKET, 0);
        out.extend_from_slice(&(ticket.len() as u16).to_be_bytes());
        out.extend_from_slice(ticket);
    }

    /// A RESUMED up to its sealed part.
    pub(crate) fn emit_answer(&self, to: &Cid, out: &mut Vec<u8>) {
        emit_handshake(out, Kind::Resumed, to);
        self.emit_fields(out);
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Resume<'a> {
    pub(crate) head: ResumeHead,
    pub(crate) cookie: &'a [u8],
    pub(crate) ticket: &'a [u8],
    pub(crate) sealed: &'a [u8],
}

impl<'a> Resume<'a> {
    /// Every RESUME is padded to this.
    pub(crate) const SIZE: usize = MIN_DATAGRAM as usize;

    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        if datagram.len() < Self::SIZE {
            return Err(Malformed);
        }
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let head = ResumeHead::parse(&mut r)?;
        let len = usize::from(r.u16()?);
        if len != 0 && len != COOKIE {
            return Err(Malformed);
        }
        let cookie = &r.bytes(COOKIE)?[..len];
        let len = usize::from(r.u16()?);
        if len > MAX_TICKET {
            return Err(Malformed);
        }
        let ticket = r.bytes(len)?;
        let len = usize::from(r.u16()?);
        Ok(Self { head, cookie, ticket, sealed: r.bytes(len)? })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Resumed {
    pub(crate) source: Cid,
    pub(crate) suite: u8,
    pub(crate) share: [u8; 32],
}

impl Resumed {
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
        let ResumeHead { source, suite, share, .. } = ResumeHead::parse(&mut r)?;
        Ok(Self { source, suite, share })
    }
}

/// A RESET (§10.7): the CID of the header is the one the lost connection had here.
pub(crate) fn parse_reset(datagram: &[u8]) -> Result<[u8; TOKEN], Malformed> {
    let mut r = Reader::new(datagram.get(HANDSHAKE_HEADER..).ok_or(Malformed)?);
    let token = r.array()?;
    if r.is_empty() { Ok(token) } else { Err(Malformed) }
}

/// Bytes of a RESET: less than any protected packet has.
pub(crate) const RESET: usize = HANDSHAKE_HEADER + TOKEN;

pub(crate) fn emit_reset(lost: &Cid, token: &[u8; TOKEN], out: &mut Vec<u8>) {
    emit_handshake(out, Kind::Reset, lost);
    out.extend_from_slice(token);
}

/// The body of a PROVE (§3.6), up to the signature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) public_key: [u8; 32],
    pub(crate) params: Params,
    pub(crate) credential: &'a [u8],
    /// Offset of the signature in the body; the confirmation follows it.
    pub(crate) signature_at: usize,
    pub(crate) signature: [u8; 64],
    pub(crate) confirmation: [u8; 32],
}

impl<'a> Body<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let public_key = r.array()?;
        let params = Params::parse(&mut r)?;
        let extensions = usize::from(r.u16()?);
        if extensions > MAX_EXTENSIONS {
            return Err(Malformed);
        }
        r.bytes(extensions)?;
        let len = usize::from(r.u16()?);
        if len > MAX_CREDENTIAL {
            return Err(Malformed);
        }
        let credential = r.bytes(len)?;
        let signature_at = body.len() - r.rest().len();
        let mut r = Reader::new(&body[signature_at..]);
        let (signature, confirmation) = (r.array()?, r.array()?);
        if !r.is_empty() {
            return Err(Malformed);
        }
        Ok(Self { public_key, params, credential, signature_at, signature, confirmation })
    }

    /// Appends the part before the signature.
    pub(crate) fn emit_claims(out: &mut Vec<u8>, public_key: &[u8; 32], params: &Params, credential: &[u8]) {
        out.extend_from_slice(public_key);
        params.emit(out);
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&(credential.len() as u16).to_be_bytes());
        out.extend_from_slice(credential);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn init_and_reply_survive_the_round_trip() {
        let a = [7; GROUP];
        let init =
            Init { source: [1; 8], suite: 1, nonce: [2; 32], tag: [3; 16], a: &a, cookie: &[9; COOKIE] };
        let mut out = Vec::new();
        init.emit(&mut out);
        assert_eq!(out.len(), 1200);
        let got = Init::parse(&out).unwrap();
        assert_eq!(std::format!("{init:?}"), std::format!("{got:?}"));
        assert!(Init::parse(&out[..1199]).is_err(), "a short INIT would amplify");
        out.clear();
        let reply = Reply { source: [1; 8], suite: 1, nonce: [2; 32], salt: [3; 16], b: &a };
        reply.emit(&[4; 8], &mut out);
        assert_eq!(out.len(), TRANSCRIPT_PART);
        assert_eq!(std::format!("{reply:?}"), std::format!("{:?}", Reply::parse(&out).unwrap()));
    }

    #[test]
    fn bodies_survive_the_round_trip_and_every_cut_is_malformed() {
        let params = Params {
            max_datagram: 1452,
            receive_window: 1,
            message_limit: 2,
            max_message: 3,
            idle_timeout_ms: 4,
            reset_token: [5; TOKEN],
        };
        let mut out = Vec::new();
        Body::emit_claims(&mut out, &[5; 32], &params, b"credential");
        let at = out.len();
        out.extend_from_slice(&[6; 96]);
        let body = Body::parse(&out).unwrap();
        assert_eq!((body.params, body.credential, body.signature_at), (params, &b"credential"[..], at));
        for cut in 0..out.len() {
            assert!(Body::parse(&out[..cut]).is_err());
        }
        out.push(0);
        assert!(Body::parse(&out).is_err());
    }

    #[test]
    fn parsing_is_total_on_random_bytes() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut buf = vec![0; 3000];
        for _ in 0..20_000 {
            let n = rng.next_u32() as usize % buf.len();
            rng.fill_bytes(&mut buf[..n]);
            let b = &buf[..n];
            let _ = (Init::parse(b).is_ok(), Retry::parse(b).is_ok(), Reply::parse(b).is_ok());
            let _ = (Resume::parse(b).is_ok(), Resumed::parse(b).is_ok(), parse_reset(b).is_ok());
            let _ = (ProveHead::parse(b).is_ok(), Alert::parse(b).is_ok(), Body::parse(b).is_ok());
            let _ = super::super::header::Header::parse(b).is_ok();
        }
    }
}
