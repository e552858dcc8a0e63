//! The socket as the driver waits for it: awake for it only while somebody waits.
//!
//! tokio watches a socket all the time: every datagram that arrives wakes a thread of the runtime, also while the
//! driver is at work on the ones before or has decided to let some gather. At a gigabyte a second that is some
//! ten thousand wakeups a second for nothing, each an interrupt to another core. On Linux the socket is therefore
//! watched by an epoll of its own, which tokio watches in its place and which looks at the socket only between
//! [`Gate::wait`] and [`Gate::close`]. Elsewhere it is tokio's socket.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use quinn_udp::UdpSockRef;
use tokio::io::Interest;

#[cfg(target_os = "linux")]
pub(crate) use linux::Gate;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::Gate;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
    use rustix::time::Timespec;
    use tokio::io::unix::AsyncFd;

    use super::{Interest, SocketAddr, UdpSockRef, UdpSocket, io};

    /// See the module.
    pub(crate) struct Gate {
        socket: UdpSocket,
        epoll: AsyncFd<OwnedFd>,
        /// The epoll looks at the socket.
        is_open: AtomicBool,
    }

    /// There is one entry, so nobody asks which one it was.
    const ENTRY: u64 = 0;

    impl Gate {
        /// Takes a non-blocking socket.
        pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
            let fd = epoll::create(CreateFlags::CLOEXEC)?;
            epoll::add(&fd, &socket, EventData::new_u64(ENTRY), EventFlags::empty())?;
            // Deprecated for types whose `AsRawFd` may lie; an `OwnedFd` does not, and the replacement would
            // need `unsafe` to say so.
            #[allow(deprecated)]
            let epoll = AsyncFd::with_interest(fd, Interest::READABLE)?;
            Ok(Self { socket, epoll, is_open: AtomicBool::new(false) })
        }

        pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
            self.socket.local_addr()
        }

        /// Tries to receive or send.
        pub(crate) fn attempt<R>(
            &self,
            _what: Interest,
            act: impl FnOnce(UdpSockRef<'_>) -> io::Result<R>,
        ) -> io::Result<R> {
            act(UdpSockRef::from(&self.socket))
        }

        /// Waits until one of the two may succeed. May be dropped and called again.
        pub(crate) async fn wait(&self, receive: bool, send: bool) -> io::Result<()> {
            let mut flags = EventFlags::ONESHOT;
            flags.set(EventFlags::IN, receive);
            flags.set(EventFlags::OUT, send);
            self.is_open.store(true, Ordering::Relaxed);
            epoll::modify(self.epoll.get_ref(), &self.socket, EventData::new_u64(ENTRY), flags)?;
            // What is there already is asked for here: tokio is not told again of what it was told before.
            while !self.take_event()? {
                self.epoll.readable().await?.clear_ready();
            }
            // Once told, the epoll looks no more.
            self.is_open.store(false, Ordering::Relaxed);
            Ok(())
        }

        fn take_event(&self) -> io::Result<bool> {
            let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(ENTRY) }];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let count = rustix::io::retry_on_intr(|| {
                epoll::wait(self.epoll.get_ref(), &mut events[..], Some(&at_once))
            })?;
            Ok(count > 0)
        }

        /// What comes from now on wakes nobody.
        pub(crate) fn close(&self) {
            if self.is_open.swap(false, Ordering::Relaxed) {
                let (entry, none) = (EventData::new_u64(ENTRY), EventFlags::empty());
                if let Err(error) = epoll::modify(self.epoll.get_ref(), &self.socket, entry, none) {
                    // Only wakes more often.
                    tracing::debug!(%error, "the socket could not be left alone");
                }
            }
        }
    }

    impl std::os::fd::AsFd for Gate {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }
}

#[cfg(any(not(target_os = "linux"), test))]
#[cfg_attr(target_os = "linux", allow(dead_code))]
mod portable {
    use super::{Interest, SocketAddr, UdpSockRef, UdpSocket, io};

    /// See the module.
    pub(crate) struct Gate(tokio::net::UdpSocket);

    impl Gate {
        pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
            Ok(Self(tokio::net::UdpSocket::from_std(socket)?))
        }

        pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
        }

        pub(crate) fn attempt<R>(
            &self,
            what: Interest,
            act: impl FnOnce(UdpSockRef<'_>) -> io::Result<R>,
        ) -> io::Result<R> {
            self.0.try_io(what, || act(UdpSockRef::from(&self.0)))
        }

        pub(crate) async fn wait(&self, receive: bool, send: bool) -> io::Result<()> {
            let what = match (receive, send) {
                (true, true) => Interest::READABLE | Interest::WRITABLE,
                (true, false) => Interest::READABLE,
                (false, true) => Interest::WRITABLE,
                (false, false) => return std::future::pending().await,
            };
            self.0.ready(what).await?;
            Ok(())
        }

        pub(crate) fn close(&self) {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (a, b) = (bind(), bind());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    const SOON: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(30);

    macro_rules! opens_for_what_is_asked {
        ($name:ident, $gate:ty) => {
            #[tokio::test]
            async fn $name() {
                let (far, near) = pair();
                let check = near.try_clone().unwrap();
                let gate = <$gate>::new(near).unwrap();
                let drain = || {
                    gate.attempt(Interest::READABLE, |_| {
                        loop {
                            check.recv(&mut [0; 10])?;
                        }
                    })
                };
                assert!(timeout(NEVER, gate.wait(true, false)).await.is_err(), "nothing came");
                gate.close();
                for _ in 0..3 {
                    far.send(b"one").unwrap();
                    far.send(b"two").unwrap();
                    timeout(SOON, gate.wait(true, false)).await.expect("came before").unwrap();
                    gate.close();
                    let drained: io::Result<()> = drain();
                    assert_eq!(drained.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                }
                // A wakeup may be stale, but not for ever.
                let stale = async {
                    loop {
                        gate.wait(true, false).await.unwrap();
                        let _: io::Result<()> = drain();
                    }
                };
                assert!(timeout(NEVER, stale).await.is_err());
                gate.close();
                timeout(SOON, gate.wait(false, true)).await.expect("there is room").unwrap();
                gate.close();
                let waiting = async {
                    loop {
                        gate.wait(true, false).await.unwrap();
                        if check.recv(&mut [0; 10]).is_ok() {
                            break;
                        }
                        let _: io::Result<()> = drain();
                    }
                };
                let later = async {
                    tokio::task::yield_now().await;
                    far.send(b"three").unwrap();
                };
                timeout(SOON, async { tokio::join!(waiting, later) }).await.expect("comes while waited for");
            }
        };
    }

    opens_for_what_is_asked!(ours_opens_for_what_is_asked, Gate);
    opens_for_what_is_asked!(the_portable_one_opens_for_what_is_asked, portable::Gate);
}
