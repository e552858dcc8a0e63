//! Messages between agents of a run, with what they tell of others; see `fuzzing`.
#![no_main]

#[allow(dead_code, reason = "other targets use the rest")]
#[path = "../../../edge-agent/agent-proto/tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::peer(data));
