//! See `utp2::fuzzing::resume`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| utp2::fuzzing::resume(data));
