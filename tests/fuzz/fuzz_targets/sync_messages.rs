//! Messages between members of a synchronization; see `fuzzing`.
#![no_main]

#[allow(dead_code, reason = "other targets use the rest")]
#[path = "../../../edge-agent/agent-proto/tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::sync(data));
