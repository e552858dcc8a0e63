//! Two endpoints on a virtual link, with virtual time.

mod corpora;
mod cpu;
mod ecn;
mod golden;
mod handshake;
mod hostile;
mod mtu;
mod pair;
mod paths;
mod rates;
mod resume;
mod transfer;
mod vectors;
