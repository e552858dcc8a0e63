//! See `utp2::fuzzing::endpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| utp2::fuzzing::endpoint(data));
