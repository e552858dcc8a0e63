//! `flotilla-agent`.
#[allow(dead_code, reason = "the run engine that uses all of it comes next")]
mod discovery;
mod disk;

fn main() {}
