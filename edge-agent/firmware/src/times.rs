//! What cryptography takes on this processor: instructions and stack of each operation, and of a whole handshake.
//!
//! To be run with `-icount shift=0`, by which an instruction takes a nanosecond of the board's time:
//! `cargo xtask firmware --times`. Each line is `TIME name: instructions stack`.
#![no_std]
#![no_main]

extern crate alloc;

#[allow(dead_code, reason = "clock and console alone")]
mod board;
mod stack;
#[allow(dead_code, reason = "who measures times needs no peak of the heap")]
mod start;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::hint::black_box;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes128Gcm, KeyInit as _};
use cortex_m_rt::entry;
use cortex_m_semihosting::debug;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};
use srp::bigint::BoxedUint;
use srp::{Group as _, groups};
use timebase::Instant;
use utp2::{
    Arrival, Authorizer, BlockSink, BlockSource, Config, ContextId, Ecn, Endpoint, Event, Handle, Identity,
    PeerIdentity, SourceError,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::board::Clock;

/// Instructions in a tick of the clock.
const TICK: u64 = 40;

#[entry]
fn main() -> ! {
    start::start();
    let mut clock = Clock::start();
    operations(&mut clock);
    handshake(&mut clock);
    say!("END");
    debug::exit(debug::EXIT_SUCCESS);
    loop {
        cortex_m::asm::wfi();
    }
}

/// Does it once, and says what it took.
#[inline(never)]
fn time<T>(clock: &mut Clock, name: &str, work: impl FnOnce() -> T) -> T {
    stack::paint();
    let before = stack::peak();
    let began = clock.ticks();
    let result = black_box(work());
    let instructions = (clock.ticks() - began) * TICK;
    say!("TIME {name}: {instructions} {}", stack::peak() - before);
    result
}

#[inline(never)]
fn operations(clock: &mut Clock) {
    let message = [7; 64];
    let key = SigningKey::from_bytes(&[1; 32]);
    let signature = time(clock, "Ed25519 sign, 64 bytes", || key.sign(&message));
    let public = key.verifying_key();
    let good = time(clock, "Ed25519 verify, 64 bytes", || public.verify_strict(&message, &signature));
    assert!(good.is_ok());

    let secret = StaticSecret::from([2; 32]);
    let public = time(clock, "X25519 public share", || PublicKey::from(&secret));
    time(clock, "X25519 shared secret", || secret.diffie_hellman(&public));

    // g^x, g^a, and the base of S to the power of a + ux.
    for bits in [256, 384, 544] {
        let exponent = BoxedUint::from_be_slice_vartime(&vec![0xa5; bits / 8]);
        let generator = groups::G2048::generator();
        let name = alloc::format!("2048 bits to the power of {bits} bits");
        time(clock, &name, || generator.pow(&exponent));
    }

    let block = vec![3; 32 * 1024];
    time(clock, "SHA-256, 32 KiB", || Sha256::digest(&block));
    drop(block);

    let cipher = time(clock, "AES-128-GCM, a key", || Aes128Gcm::new(&[4; 16].into()));
    let (nonce, head, mut packet) = ([5; 12], [6; 16], vec![8; 1168]);
    let sealed = time(clock, "AES-128-GCM seal, a packet of 1200 bytes", || {
        cipher.encrypt_inout_detached(&nonce.into(), &head, packet.as_mut_slice().into())
    });
    let tag = sealed.expect("a short message");
    let opened = time(clock, "AES-128-GCM open, a packet of 1200 bytes", || {
        cipher.decrypt_inout_detached(&nonce.into(), &head, packet.as_mut_slice().into(), &tag)
    });
    assert!(opened.is_ok() && packet.iter().all(|byte| *byte == 8));
}

struct Everybody;

impl Authorizer for Everybody {
    fn authorize(&self, _: ContextId, _: &PeerIdentity) -> bool {
        true
    }
}

struct Nothing;

impl BlockSource for Nothing {
    fn read(&mut self, _: Handle, _: u64, _: u32, _: &mut [u8]) -> Result<(), SourceError> {
        Err(SourceError)
    }
}

impl BlockSink for Nothing {
    fn write(&mut self, _: Handle, _: u64, _: u32, _: bool, _: &[u8]) {}
}

/// One side of the handshake, and what it took.
struct Side {
    endpoint: Endpoint,
    address: SocketAddr,
    ticks: u64,
    connected: bool,
}

impl Side {
    fn new(seed: u8) -> Self {
        let identity = Identity::new([seed; 32], vec![seed; 200]);
        let mut endpoint = Endpoint::new(Config::small(), identity, Box::new(Everybody), [seed + 1; 32]);
        endpoint.add_context(ContextId([9; 16]), &[10; 32]);
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, seed)), 7000);
        Self { endpoint, address, ticks: 0, connected: false }
    }

    /// Takes what came, and gives what it has to say.
    fn turn(
        &mut self,
        clock: &mut Clock,
        now: Instant,
        from: SocketAddr,
        came: &mut [Vec<u8>],
    ) -> Vec<Vec<u8>> {
        let began = clock.ticks();
        for datagram in came {
            let arrival = Arrival { remote: from, at: now, ecn: Ecn::NotEct };
            self.endpoint.handle_datagram(now, arrival, datagram, &mut Nothing);
        }
        if self.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            self.endpoint.handle_timeout(now);
        }
        let mut said = Vec::new();
        loop {
            let mut datagram = Vec::new();
            let Some(transmit) = self.endpoint.poll_transmit(now, 1, &mut datagram, &mut Nothing) else {
                break;
            };
            datagram.truncate(transmit.len);
            said.push(datagram);
        }
        while let Some((_, event)) = self.endpoint.poll_event() {
            self.connected |= matches!(event, Event::Connected);
        }
        self.ticks += clock.ticks() - began;
        said
    }
}

/// The full handshake: by whom it is begun, and by whom it is answered.
#[inline(never)]
fn handshake(clock: &mut Clock) {
    stack::paint();
    let before = stack::peak();
    let (mut ours, mut theirs) = (Side::new(1), Side::new(3));
    let mut now = Instant::ZERO;
    let began = clock.ticks();
    let called = ours.endpoint.connect(now, theirs.address, ContextId([9; 16]));
    assert!(called.is_ok());
    ours.ticks += clock.ticks() - began;
    let mut to_us = Vec::new();
    while !(ours.connected && theirs.connected) {
        let mut to_them = ours.turn(clock, now, theirs.address, &mut to_us);
        to_us = theirs.turn(clock, now, ours.address, &mut to_them);
        now = now + Duration::from_millis(1);
    }
    let stack = stack::peak() - before;
    say!("TIME handshake, who begins: {} {stack}", ours.ticks * TICK);
    say!("TIME handshake, who answers: {} {stack}", theirs.ticks * TICK);
}
