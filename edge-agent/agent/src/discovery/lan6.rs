//! Multicast over IPv6, beside that over IPv4 ([`super::lan`]; `PROTOCOL.md` §7): one socket that receives and one that
//! sends, both with every interface named by its index.
//!
//! The receiver cannot be bound to the group, as a link-local one is another one on each link. What comes from
//! elsewhere than the link is dropped here instead.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdUdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::lan::Interface;

/// The group: transient, link-local scope; 464c 4f54 = "FLOT".
pub(crate) const LAN_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x464c, 0x4f54);

/// Stay on this link.
const HOPS: u32 = 1;

pub(super) struct LanSocketsV6 {
    receiver: UdpSocket,
    sender: Socket,
    port: u16,
    joined: Vec<u32>,
}

impl LanSocketsV6 {
    /// Opens both sockets and joins the group on `interfaces` as far as possible.
    pub(super) fn open(port: u16, interfaces: &[Interface]) -> io::Result<Self> {
        let mut sockets = Self { receiver: receiver(port)?, sender: sender()?, port, joined: Vec::new() };
        sockets.update(interfaces);
        if sockets.joined.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no interface can multicast over IPv6"));
        }
        Ok(sockets)
    }

    /// Joins on new interfaces and forgets those that are gone. True if any is new.
    pub(super) fn update(&mut self, interfaces: &[Interface]) -> bool {
        let wanted: Vec<u32> = interfaces.iter().filter_map(|i| index(*i)).collect();
        self.joined.retain(|i| wanted.contains(i));
        let mut new = false;
        for index in wanted {
            if !self.joined.contains(&index) && self.join(index) {
                self.joined.push(index);
                new = true;
            }
        }
        new
    }

    pub(super) fn interfaces(&self) -> usize {
        self.joined.len()
    }

    /// Sends to the group on every interface; one that can't at the moment is passed over.
    pub(super) fn send(&self, bytes: &[u8]) {
        for &index in &self.joined {
            let to = SocketAddrV6::new(LAN_GROUP_V6, self.port, 0, index);
            let _ =
                self.sender.set_multicast_if_v6(index).and_then(|()| self.sender.send_to(bytes, &to.into()));
        }
    }

    /// The next datagram of the group, from this link.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let (len, from) = self.receiver.recv_from(buffer).await?;
            if self.is_near(from) {
                return Ok((len, from));
            }
        }
    }

    fn is_near(&self, from: SocketAddr) -> bool {
        let SocketAddr::V6(from) = from else { return false };
        from.ip().is_unicast_link_local() && self.joined.contains(&from.scope_id())
    }

    fn join(&self, index: u32) -> bool {
        let joined = socket2::SockRef::from(&self.receiver).join_multicast_v6(&LAN_GROUP_V6, index);
        // In use: joined before, and the interface went away and came back.
        joined.is_ok() || joined.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Not the loopback, which has no multicast over IPv6 on Linux: others on this host hear us on any interface, and those
/// who listen on the loopback alone use the group over IPv4 there.
fn index(interface: Interface) -> Option<u32> {
    match interface {
        Interface::Loopback => None,
        #[cfg(target_os = "linux")]
        Interface::Index(index) => Some(index),
        #[cfg(not(target_os = "linux"))]
        Interface::Default => Some(0),
    }
}

fn receiver(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    // The group over IPv4 has the same port and its own socket.
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(target_os = "linux")))]
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(StdUdpSocket::from(socket))
}

fn sender() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0).into())?;
    socket.set_multicast_hops_v6(HOPS)?;
    // Other agents on this host are members too.
    socket.set_multicast_loop_v6(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::LanInterfaces;
    use super::super::lan::interfaces;
    use super::*;

    #[tokio::test]
    async fn heard_on_a_real_interface() {
        let port = StdUdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let interfaces = interfaces("::".parse().unwrap(), &LanInterfaces::Auto);
        assert!(LanSocketsV6::open(port, &[Interface::Loopback]).is_err(), "none to be had there");
        let (Ok(a), Ok(b)) = (LanSocketsV6::open(port, &interfaces), LanSocketsV6::open(port, &interfaces))
        else {
            eprintln!("SKIPPED heard_on_a_real_interface: none has IPv6 multicast");
            return;
        };
        a.send(b"hello");
        for sockets in [&a, &b] {
            let mut buffer = [0; 9];
            let receive = sockets.receive(&mut buffer);
            let Ok(received) = tokio::time::timeout(std::time::Duration::from_secs(5), receive).await else {
                // Joining succeeds where there is no address to send from.
                eprintln!("SKIPPED heard_on_a_real_interface: none has a link-local address");
                return;
            };
            let (len, SocketAddr::V6(from)) = received.unwrap() else { panic!("IPv6") };
            assert_eq!((&buffer[..len], from.ip().is_unicast_link_local()), (&b"hello"[..], true));
            assert_ne!(from.scope_id(), 0);
        }
    }

    #[tokio::test]
    async fn what_comes_from_elsewhere_than_the_link_is_dropped() {
        let port = StdUdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let Ok(receiver) = receiver(port) else {
            eprintln!("SKIPPED what_comes_from_elsewhere_than_the_link_is_dropped: no IPv6 here");
            return;
        };
        let sockets = LanSocketsV6 { receiver, sender: sender().unwrap(), port, joined: vec![3] };
        let near = |ip: &str, scope| {
            let mut from: SocketAddrV6 = format!("[{ip}]:1").parse().unwrap();
            from.set_scope_id(scope);
            sockets.is_near(from.into())
        };
        assert!(near("fe80::1", 3));
        assert!(!near("fe80::1", 4), "another link");
        assert!(!near("2001:db8::1", 3) && !near("::1", 0) && !near("::ffff:192.0.2.1", 0));
        assert!(!sockets.is_near("192.0.2.1:1".parse().unwrap()));
    }
}
