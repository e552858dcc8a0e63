//! The tracker as a state machine: datagrams and time in, answers and rings out (`PROTOCOL.md` §4).
//!
//! Left out: the socket ([`crate::net`]) and the table ([`crate::registry`]).

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::Serialize;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use timebase::Instant;
use tracker_proto::limits::DATAGRAM_MAX;
use tracker_proto::message::Cookie;
use tracker_proto::{Announce, Call, CookieReply, PeersReply, Ring, ToTracker};

use crate::limits::{COOKIE_BUCKET, Limits, RINGS_PER_CALL, RINGS_PER_SECOND, RINGS_PER_SOURCE};
use crate::rate::RateLimiter;
use crate::registry::{Registry, source_of};

/// What a server counted since its start, and what its table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stats {
    pub(crate) swarms: usize,
    pub(crate) entries: usize,
    /// Datagrams received.
    pub(crate) received: u64,
    /// Announcements with a valid cookie that were answered.
    pub(crate) announces: u64,
    /// Of these, those that left.
    pub(crate) leaves: u64,
    /// Of these, those that found no room.
    pub(crate) full: u64,
    /// Cookies given to those who had no valid one.
    pub(crate) cookies: u64,
    /// Datagrams that were no announcement.
    pub(crate) invalid: u64,
    /// Announcements over the rate limit.
    pub(crate) limited: u64,
    /// Calls with a valid cookie.
    pub(crate) calls: u64,
    /// Rings sent because of them.
    pub(crate) rings: u64,
    /// Entries whose time was over.
    pub(crate) expired: u64,
}

pub(crate) struct Server {
    limits: Limits,
    cookie_key: [u8; 32],
    rng: ChaCha8Rng,
    registry: Registry,
    /// Sources that have shown a cookie, hence are real.
    requests: RateLimiter,
    /// Sources that may be made up. Apart from the others, so that requests in somebody's name can't use
    /// up what he may ask himself.
    cookies: RateLimiter,
    /// Sources that are rung, so that nobody drowns in calls.
    rung: RateLimiter,
    rung_behind: RateLimiter,
    stats: Stats,
}

impl Server {
    /// A server with an empty table. `seed`: 32 unpredictable bytes; cookies depend on their secrecy.
    pub(crate) fn new(limits: Limits, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let mut cookie_key = [0; 32];
        rng.fill_bytes(&mut cookie_key);
        let limiter = || RateLimiter::new((limits.requests_per_second, limits.request_burst));
        Self {
            requests: limiter(),
            cookies: limiter(),
            rung: RateLimiter::new(RINGS_PER_SECOND),
            rung_behind: RateLimiter::new(RINGS_PER_SOURCE),
            registry: Registry::new(limits.clone()),
            stats: Stats::default(),
            limits,
            cookie_key,
            rng,
        }
    }

    /// Takes a datagram; returns what to send where: an answer to its sender, or rings to others. Together never longer
    /// than the datagram.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        self.handle_timeout(now);
        self.stats.received += 1;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let out = match ToTracker::parse(bytes) {
            Ok(ToTracker::Announce(announce)) => self.announced(now, from, announce, bytes.len()),
            Ok(ToTracker::Call(call)) => self.called(now, from, call, bytes.len()),
            Err(_) => {
                self.stats.invalid += 1;
                Vec::new()
            }
        };
        debug_assert!(out.iter().map(|(_, b)| b.len()).sum::<usize>() <= bytes.len(), "never longer");
        out
    }

    fn announced(
        &mut self,
        now: Instant,
        from: SocketAddr,
        announce: Announce,
        len: usize,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let known = self.is_valid_cookie(now, from, &announce.cookie);
        let limiter = if known { &mut self.requests } else { &mut self.cookies };
        if !limiter.allows(now, source_of(from)) {
            self.stats.limited += 1;
            return Vec::new();
        }
        let mut out = Vec::new();
        if known {
            self.listed(now, from, announce, len).emit(&mut out);
        } else {
            self.stats.cookies += 1;
            let cookie = self.cookie(bucket(now), from);
            CookieReply { transaction: announce.transaction, cookie }.emit(&mut out);
        }
        vec![(from, out)]
    }

    /// Rings whoever is listed under the id called (§4.8).
    fn called(
        &mut self,
        now: Instant,
        from: SocketAddr,
        call: Call,
        len: usize,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        if !self.is_valid_cookie(now, from, &call.cookie) || call.entry.flags().leaving {
            self.stats.invalid += 1;
            return Vec::new();
        }
        if !self.requests.allows(now, source_of(from)) {
            self.stats.limited += 1;
            return Vec::new();
        }
        self.stats.calls += 1;
        let ring = Ring { swarm: call.swarm, observed: from, entry: call.entry };
        let most = (len / ring.encoded_len()).min(RINGS_PER_CALL);
        let mut bytes = Vec::new();
        ring.emit(&mut bytes);
        let mut out = Vec::new();
        for to in self.registry.places_of(call.swarm, call.callee, from, most, &mut self.rng) {
            if self.rung.allows(now, to) && self.rung_behind.allows(now, source_of(to)) {
                out.push((to, bytes.clone()));
            } else {
                self.stats.limited += 1;
            }
        }
        self.stats.rings += out.len() as u64;
        out
    }

    /// Forgets entries whose time is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.stats.expired += self.registry.expire(now);
    }

    /// When to call [`Server::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.registry.next_end()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { swarms: self.registry.swarms(), entries: self.registry.entries(), ..self.stats }
    }

    /// Stores or removes the entry, and chooses who to tell of.
    fn listed(
        &mut self,
        now: Instant,
        from: SocketAddr,
        announce: Announce,
        request_len: usize,
    ) -> PeersReply {
        self.stats.announces += 1;
        let Announce { transaction, swarm, entry, .. } = announce;
        let mut reply = PeersReply {
            transaction,
            cookie: self.cookie(bucket(now), from),
            interval: self.limits.interval(),
            full: false,
            observed: from,
            peers: Vec::new(),
        };
        if entry.flags().leaving {
            self.stats.leaves += 1;
            self.registry.remove(swarm, from);
            return reply;
        }
        reply.full = self.registry.announce(now, swarm, from, entry).is_err();
        self.stats.full += u64::from(reply.full);
        let room = request_len.min(DATAGRAM_MAX).saturating_sub(PeersReply::empty_len(from));
        reply.peers = self.registry.sample(swarm, from, room, &mut self.rng);
        reply
    }

    fn is_valid_cookie(&self, now: Instant, from: SocketAddr, cookie: &Cookie) -> bool {
        let bucket = bucket(now);
        let matches = |b: u64| self.cookie(b, from).ct_eq(cookie);
        (matches(bucket) | matches(bucket.wrapping_sub(1))).into()
    }

    fn cookie(&self, bucket: u64, from: SocketAddr) -> Cookie {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.cookie_key).expect("HMAC takes keys of any length");
        mac.update(&bucket.to_be_bytes());
        match from.ip() {
            IpAddr::V4(ip) => {
                mac.update(&[4]);
                mac.update(&ip.octets());
            }
            IpAddr::V6(ip) => {
                mac.update(&[6]);
                mac.update(&ip.octets());
            }
        }
        mac.update(&from.port().to_be_bytes());
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        cookie
    }
}

fn bucket(now: Instant) -> u64 {
    now.as_micros() / COOKIE_BUCKET.as_micros() as u64
}

#[cfg(test)]
mod tests;
