//! `flotilla-agent`.
mod disk;

fn main() {}
