//! A stand-in for TLS in simulated QUIC connections: the same course of messages, about the same lengths,
//! the same 16 bytes behind every packet, and no cryptography.
//!
//! What QUIC does on a path depends on when and how much is sent, not on what the bytes say; without
//! encryption a simulation is faster and the same every time. The 16 bytes hold a sum, so that a flipped
//! bit is noticed. Never to be used on a network.

use std::any::Any;
use std::io::Cursor;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    AeadKey, ClientConfig, CryptoError, ExportKeyingMaterialError, HandshakeTokenKey, HeaderKey, HmacKey,
    KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};

const TAG: usize = 16;
/// About what a certificate and its proof take.
const SERVER_FLIGHT: usize = 900;

/// Everything that quinn-proto wants keys for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

fn sum(number: u64, parts: [&[u8]; 2]) -> [u8; TAG] {
    let mut sum = number ^ 0x9e37_79b9_7f4a_7c15;
    for part in parts {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            sum = sum.rotate_left(5).wrapping_add(u64::from_le_bytes(*word));
        }
        for byte in rest {
            sum = sum.rotate_left(5).wrapping_add(u64::from(*byte));
        }
    }
    let mut tag = [0; TAG];
    tag[..8].copy_from_slice(&sum.to_le_bytes());
    tag
}

impl PacketKey for Plain {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, rest) = buf.split_at_mut(header_len);
        let (payload, tag) = rest.split_at_mut(rest.len() - TAG);
        tag.copy_from_slice(&sum(packet, [header, payload]));
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let len = payload.len().checked_sub(TAG).ok_or(CryptoError)?;
        if payload[len..] != sum(packet, [header, &payload[..len]]) {
            return Err(CryptoError);
        }
        payload.truncate(len);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

impl HeaderKey for Plain {
    fn decrypt(&self, _: usize, _: &mut [u8]) {}

    fn encrypt(&self, _: usize, _: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        TAG
    }
}

impl HmacKey for Plain {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.fill(0);
        let sum = sum(0, [data, &[]]);
        let n = signature_out.len().min(8);
        signature_out[..n].copy_from_slice(&sum[..n]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, _: &[u8], _: &[u8]) -> Result<(), CryptoError> {
        Ok(())
    }
}

impl HandshakeTokenKey for Plain {
    fn aead_from_hkdf(&self, _: &[u8]) -> Box<dyn AeadKey> {
        Box::new(Self)
    }
}

impl AeadKey for Plain {
    fn seal(&self, data: &mut Vec<u8>, _: &[u8]) -> Result<(), CryptoError> {
        data.extend_from_slice(&[0; TAG]);
        Ok(())
    }

    fn open<'a>(&self, data: &'a mut [u8], _: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let len = data.len().checked_sub(TAG).ok_or(CryptoError)?;
        Ok(&mut data[..len])
    }
}

fn keys() -> Keys {
    Keys { header: KeyPair { local: Box::new(Plain), remote: Box::new(Plain) }, packet: packet_keys() }
}

fn packet_keys() -> KeyPair<Box<dyn PacketKey>> {
    KeyPair { local: Box::new(Plain), remote: Box::new(Plain) }
}

impl ClientConfig for Plain {
    fn start_session(
        self: Arc<Self>,
        _: u32,
        _: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(Course::new(Side::Client, params)))
    }
}

impl ServerConfig for Plain {
    fn initial_keys(&self, _: u32, _: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        Ok(keys())
    }

    fn retry_tag(&self, _: u32, _: &ConnectionId, _: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn start_session(self: Arc<Self>, _: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(Course::new(Side::Server, params))
    }
}

/// Messages of the handshake. Each is its length in two bytes, and the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Client: nothing written. Server: nothing read.
    Start,
    /// Client: waits for the server's hello. Server: has the client's, has written nothing.
    Hello,
    /// Client: waits for the server's flight. Server: has written its hello.
    Flight,
    /// Client: has all. Server: waits for the client's end.
    Finish,
    Done,
}

struct Course {
    side: Side,
    own: Vec<u8>,
    peer: Option<Vec<u8>>,
    stage: Stage,
    partial: Vec<u8>,
}

impl Course {
    fn new(side: Side, params: &TransportParameters) -> Self {
        let mut own = Vec::new();
        params.write(&mut own);
        Self { side, own, peer: None, stage: Stage::Start, partial: Vec::new() }
    }

    fn on_message(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        self.stage = match (self.side, self.stage) {
            (Side::Server, Stage::Start) => {
                self.peer = Some(message);
                Stage::Hello
            }
            (Side::Client, Stage::Hello) => Stage::Flight,
            (Side::Client, Stage::Flight) => {
                self.peer = Some(message);
                Stage::Finish
            }
            (Side::Server, Stage::Finish) => Stage::Done,
            _ => {
                return Err(TransportError {
                    code: TransportErrorCode::crypto(10),
                    frame: None,
                    reason: "a message too many".into(),
                });
            }
        };
        Ok(())
    }
}

fn write_message(buf: &mut Vec<u8>, message: &[u8], len_min: usize) {
    let padding = len_min.saturating_sub(message.len());
    // The transport parameters come first; what follows them is told apart by their own length.
    let len = u16::try_from(message.len()).expect("handshake messages are short");
    let all = u16::try_from(message.len() + padding).expect("handshake messages are short");
    buf.extend_from_slice(&all.to_be_bytes());
    buf.extend_from_slice(&len.to_be_bytes());
    buf.extend_from_slice(message);
    buf.resize(buf.len() + padding, 0);
}

impl Session for Course {
    fn initial_keys(&self, _: &ConnectionId, _: Side) -> Keys {
        keys()
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        Some(false)
    }

    fn is_handshaking(&self) -> bool {
        self.stage != Stage::Done
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.partial.extend_from_slice(buf);
        while let Some((&[a, b, c, d], rest)) = self.partial.split_first_chunk::<4>() {
            let (all, len) =
                (usize::from(u16::from_be_bytes([a, b])), usize::from(u16::from_be_bytes([c, d])));
            let Some(message) = rest.get(..all.max(len)).map(|m| m[..len].to_vec()) else { break };
            self.partial.drain(..4 + all.max(len));
            self.on_message(message)?;
        }
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(peer) = &self.peer else { return Ok(None) };
        Ok(Some(TransportParameters::read(self.side, &mut Cursor::new(peer))?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        match (self.side, self.stage) {
            (Side::Client, Stage::Start) => {
                write_message(buf, &self.own, 0);
                self.stage = Stage::Hello;
                None
            }
            (Side::Server, Stage::Hello) => {
                write_message(buf, &[], 100);
                self.stage = Stage::Flight;
                Some(keys())
            }
            (Side::Server, Stage::Flight) => {
                write_message(buf, &self.own, SERVER_FLIGHT);
                self.stage = Stage::Finish;
                Some(keys())
            }
            // The keys for the server's flight, once its hello was read; told apart by what was read.
            (Side::Client, Stage::Flight) if self.own.capacity() > 0 => {
                self.own = Vec::new();
                Some(keys())
            }
            (Side::Client, Stage::Finish) => {
                write_message(buf, &[], 36);
                self.stage = Stage::Done;
                Some(keys())
            }
            _ => None,
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        Some(packet_keys())
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        true
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut packet = vec![7; 100];
        PacketKey::encrypt(&Plain, 3, &mut packet, 10);
        let open = |packet: &[u8], number| {
            let mut payload = BytesMut::from(&packet[10..]);
            PacketKey::decrypt(&Plain, number, &packet[..10], &mut payload).map(|()| payload.len())
        };
        assert_eq!(open(&packet, 3).ok(), Some(74));
        assert!(open(&packet, 4).is_err());
        for bit in 0..800 {
            packet[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&packet, 3).is_err(), "{bit}");
            packet[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
