//! A small world of real processes on loopback, for tests: control service, tracker, agents.
//!
//! Every world has a folder of its own and every listener port 0. Processes are killed when their
//! handle is dropped; logs stay with the world's folder when a test fails. Start at [`World`].

mod busybox;
mod disk;
mod metadata;
mod process;
mod shipped;
mod small_box;
mod system;
mod tree;
mod world;

pub use busybox::BusyBox;
pub use disk::Disk;
pub use metadata::{ensure_identical, make_rich_tree};
pub use process::{Process, binary, utp2, wait_until};
pub use shipped::Program;
pub use small_box::SmallBox;
pub use system::System;
pub use tree::{Tree, differences, members_differ};
pub use world::{Agent, Control, Options, Run, World};
