//! What `utp2 send` and `utp2 recv` say to each other; see `wire_check`.
#![no_main]

#[allow(dead_code)]
#[path = "../../utp2-tool/src/wire.rs"]
mod wire;
#[path = "../../utp2-tool/src/wire_check.rs"]
mod wire_check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_check::check(data));
