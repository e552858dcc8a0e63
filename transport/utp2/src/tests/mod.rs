//! Two endpoints on a virtual link, with virtual time.

#[cfg(feature = "control")]
mod corpora;
#[cfg(feature = "control")]
mod cpu;
mod ecn;
mod golden;
mod handshake;
mod hostile;
mod mtu;
mod pair;
mod paths;
#[cfg(feature = "control")]
mod rates;
mod resume;
mod transfer;
mod vectors;
