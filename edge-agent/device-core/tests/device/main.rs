//! Devices on flash in memory: power that goes at every write, worn cells, full outboxes, bytes that are not what they
//! should be, commands that are not to be obeyed. `flash` is the medium, `world` a fleet around it.

mod fetch;
mod flash;
mod hostile;
mod orders;
mod power;
mod updates;
mod wear;
mod world;
