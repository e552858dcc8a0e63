//! Settings of the whole machine that fast transfers need, raised for as long as a measurement lasts.
//!
//! `net.core.rmem_max` and `wmem_max` bound what a program may ask for its sockets' buffers. They are the one thing
//! here that is not kept per namespace.

use std::fs;
use std::path::Path;

/// What they are raised to: half a second at 1 Gbit/s.
const BUFFER_MAX: u64 = 64 << 20;

/// Raised limits; put back when dropped. A measurement that is killed leaves them raised, which harms nothing.
pub struct Raised {
    before: Vec<(&'static str, u64)>,
}

impl Raised {
    /// Raises the limits that are lower. Says on stderr what could not be raised.
    #[must_use]
    pub fn new() -> Self {
        let mut before = Vec::new();
        for path in ["/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max"] {
            let Some(value) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) else {
                continue;
            };
            if value >= BUFFER_MAX {
                continue;
            }
            match fs::write(path, BUFFER_MAX.to_string()) {
                Ok(()) => before.push((path, value)),
                Err(error) => {
                    let name = Path::new(path).file_name().unwrap_or_default();
                    eprintln!(
                        "wan: socket buffers stay small, packets may be dropped at the receiver ({error}); as root: \
                         sysctl -w net.core.{}={BUFFER_MAX}",
                        name.display()
                    );
                }
            }
        }
        Self { before }
    }
}

impl Default for Raised {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            let _ = fs::write(path, value.to_string());
        }
    }
}
