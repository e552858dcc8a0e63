//! Who is probed, and what proves a way; see `fuzzing`.
#![no_main]

#[allow(dead_code, reason = "other targets use the rest")]
#[path = "../../../tracker/tracker-proto/tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::prober(data));
