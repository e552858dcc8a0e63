//! One deadline, kept to some ten microseconds where the system can.
//!
//! tokio's timers count milliseconds; at 1 Gbit/s that is 80 packets in one burst. On Linux this is a
//! `timerfd`, elsewhere tokio's sleep.

use std::io;
use std::time::Duration;

#[cfg(target_os = "linux")]
pub(crate) use linux::Timer;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::Timer;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::{Duration, io};

    /// See the module.
    pub(crate) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        pub(crate) fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            // Deprecated for types whose `AsRawFd` may lie; an `OwnedFd` does not, and the replacement
            // would need `unsafe` to say so.
            #[allow(deprecated)]
            Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE)?))
        }

        /// Fires once after `delay`, or never; replaces what was set before.
        pub(crate) fn set(&mut self, delay: Option<Duration>) -> io::Result<()> {
            // Zero would disarm it.
            let delay = delay.map_or(Duration::ZERO, |d| d.max(Duration::from_nanos(1)));
            let it_value = Timespec::try_from(delay).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
            Ok(())
        }

        /// Waits for it to fire. May be dropped and called again.
        pub(crate) async fn fired(&self) -> io::Result<()> {
            loop {
                let mut guard = self.0.readable().await?;
                let read = guard.try_io(|fd| Ok(rustix::io::read(fd, &mut [0u8; 8])?));
                match read {
                    Ok(Ok(_)) => {
                        // It fires once: asking again before it is set would only find that out.
                        guard.clear_ready();
                        return Ok(());
                    }
                    Ok(Err(e)) => return Err(e),
                    // It was set anew in between.
                    Err(_would_block) => {}
                }
            }
        }
    }
}

#[cfg(any(not(target_os = "linux"), test))]
#[cfg_attr(target_os = "linux", allow(dead_code))]
mod portable {
    use tokio::time::{Instant, sleep_until};

    use super::{Duration, io};

    /// See the module.
    pub(crate) struct Timer(Option<Instant>);

    impl Timer {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(None))
        }

        pub(crate) fn set(&mut self, delay: Option<Duration>) -> io::Result<()> {
            self.0 = delay.and_then(|d| Instant::now().checked_add(d));
            Ok(())
        }

        pub(crate) async fn fired(&self) -> io::Result<()> {
            match self.0 {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn fires_once_not_before_its_time_and_the_last_setting_counts() {
        let mut timer = Timer::new().unwrap();
        timer.set(Some(Duration::ZERO)).unwrap();
        timer.fired().await.unwrap();
        timer.set(Some(Duration::ZERO)).unwrap();
        let begin = Instant::now();
        timer.set(Some(Duration::from_millis(20))).unwrap();
        timer.fired().await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
        timer.set(Some(Duration::ZERO)).unwrap();
        timer.set(None).unwrap();
        assert!(timeout(Duration::from_millis(20), timer.fired()).await.is_err());
    }

    #[tokio::test]
    async fn the_portable_one_fires_too() {
        let mut timer = portable::Timer::new().unwrap();
        timer.set(Some(Duration::from_millis(5))).unwrap();
        let begin = Instant::now();
        timer.fired().await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(5));
        timer.set(None).unwrap();
        assert!(timeout(Duration::from_millis(5), timer.fired()).await.is_err());
    }
}
