//! See `utp2::fuzzing::replay_window`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| utp2::fuzzing::replay_window(data));
