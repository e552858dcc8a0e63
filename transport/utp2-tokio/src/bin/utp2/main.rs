//! The `utp2` tool.

fn main() {}
