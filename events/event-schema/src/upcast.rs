//! Old shapes of payloads, turned into the newest ones while reading.
//!
//! A stored event is never edited. When a payload changes, its old struct moves here under its
//! version, and a pure function turns it into the next version; `tests/golden.rs` keeps bytes of
//! every version ever written. There is one version of everything so far.

use crate::Tagged;

/// For enums all of whose payloads still have their first shape.
pub fn none(_: &Tagged) -> Option<Tagged> {
    None
}
