//! Multicast sockets: one that receives, shared by all agents of this host, and one that sends on each
//! interface (`PROTOCOL.md` §7).
//!
//! Over IPv4; `lan6.rs` does the same over IPv6, on the interfaces that are found here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket as StdUdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{LanConfig, LanInterfaces};

/// Interfaces to announce on at most: a host with hundreds of virtual ones must not flood them all.
const INTERFACES_MAX: usize = 16;

/// Stay on this network.
const TTL: u32 = 1;

/// An interface to join and to send on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interface {
    /// The loopback, named by its address.
    Loopback,
    /// Any other, by its index.
    #[cfg(target_os = "linux")]
    Index(u32),
    /// Whatever the system takes.
    #[cfg(not(target_os = "linux"))]
    Default,
}

pub(super) struct LanSockets {
    receiver: UdpSocket,
    sender: Socket,
    group: SocketAddrV4,
    loopback_only: bool,
    joined: Vec<Interface>,
}

impl LanSockets {
    /// Opens both sockets and joins the group on `interfaces` as far as possible.
    pub(super) fn open(
        config: &LanConfig,
        loopback_only: bool,
        interfaces: &[Interface],
    ) -> io::Result<Self> {
        let group = SocketAddrV4::new(config.group, config.port);
        let mut sockets = Self {
            receiver: receiver(group)?,
            sender: sender(loopback_only)?,
            group,
            loopback_only,
            joined: Vec::new(),
        };
        sockets.update(interfaces);
        if sockets.joined.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no interface can multicast"));
        }
        Ok(sockets)
    }

    /// Joins on new interfaces and forgets those that are gone. True if any is new.
    pub(super) fn update(&mut self, interfaces: &[Interface]) -> bool {
        self.joined.retain(|i| interfaces.contains(i));
        let mut new = false;
        for &interface in interfaces {
            if !self.joined.contains(&interface) && self.join(interface) {
                self.joined.push(interface);
                new = true;
            }
        }
        new
    }

    pub(super) fn interfaces(&self) -> usize {
        self.joined.len()
    }

    /// Sends to the group on every interface. An interface that can't at the moment is passed over: the
    /// next announcement comes soon.
    pub(super) fn send(&self, bytes: &[u8]) {
        for &interface in &self.joined {
            let _ = self.select(interface).and_then(|()| self.sender.send_to(bytes, &self.group.into()));
        }
    }

    /// The next datagram of the group.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let (len, from) = self.receiver.recv_from(buffer).await?;
            if !self.loopback_only || from.ip().is_loopback() {
                return Ok((len, from));
            }
        }
    }

    fn join(&self, interface: Interface) -> bool {
        let socket = socket2::SockRef::from(&self.receiver);
        let joined = match interface {
            Interface::Loopback => socket.join_multicast_v4(self.group.ip(), &Ipv4Addr::LOCALHOST),
            #[cfg(target_os = "linux")]
            Interface::Index(index) => {
                socket.join_multicast_v4_n(self.group.ip(), &socket2::InterfaceIndexOrAddress::Index(index))
            }
            #[cfg(not(target_os = "linux"))]
            Interface::Default => socket.join_multicast_v4(self.group.ip(), &Ipv4Addr::UNSPECIFIED),
        };
        // In use: joined before, and the interface went away and came back.
        joined.is_ok() || joined.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
    }

    fn select(&self, interface: Interface) -> io::Result<()> {
        match interface {
            Interface::Loopback => self.sender.set_multicast_if_v4(&Ipv4Addr::LOCALHOST),
            #[cfg(target_os = "linux")]
            Interface::Index(index) => rustix::net::sockopt::set_ip_multicast_if_with_ifindex(
                &self.sender,
                &Ipv4Addr::UNSPECIFIED,
                &Ipv4Addr::UNSPECIFIED,
                index,
            )
            .map_err(io::Error::from),
            #[cfg(not(target_os = "linux"))]
            Interface::Default => self.sender.set_multicast_if_v4(&Ipv4Addr::UNSPECIFIED),
        }
    }
}

fn receiver(group: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Several agents on one host share the port, and each receives every datagram of the group.
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(target_os = "linux")))]
    socket.set_reuse_port(true)?;
    // Without this, Linux also gives us what others on this host have joined on other interfaces.
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v4(false)?;
    // Bound to the group, no unicast arrives here; Windows can't do that.
    let ip = if cfg!(windows) { Ipv4Addr::UNSPECIFIED } else { *group.ip() };
    socket.bind(&SocketAddrV4::new(ip, group.port()).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(StdUdpSocket::from(socket))
}

fn sender(loopback_only: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    let ip = if loopback_only { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    socket.bind(&SocketAddrV4::new(ip, 0).into())?;
    socket.set_multicast_ttl_v4(TTL)?;
    // Other agents on this host are members too.
    socket.set_multicast_loop_v4(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The interfaces to use now. `listen`: our µTP2 address; if it is on the loopback, so is multicast, and
/// nothing leaves this machine.
pub(super) fn interfaces(listen: IpAddr, wanted: &LanInterfaces) -> Vec<Interface> {
    if listen.to_canonical().is_loopback() {
        return vec![Interface::Loopback];
    }
    let mut found = system_interfaces(wanted);
    found.truncate(INTERFACES_MAX);
    found
}

#[cfg(not(target_os = "linux"))]
fn system_interfaces(_: &LanInterfaces) -> Vec<Interface> {
    vec![Interface::Default, Interface::Loopback]
}

#[cfg(target_os = "linux")]
fn system_interfaces(wanted: &LanInterfaces) -> Vec<Interface> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return vec![Interface::Loopback] };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let number = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
            let flags = number("flags")?;
            let flags = u32::from_str_radix(flags.trim().strip_prefix("0x")?, 16).ok()?;
            let index = number("ifindex")?.trim().parse().ok()?;
            usable(&entry.file_name().to_string_lossy(), flags, index, wanted)
        })
        .collect();
    // The loopback first, then as the kernel numbers them: the same choice each time.
    found.sort();
    found
}

#[cfg(target_os = "linux")]
fn usable(name: &str, flags: u32, index: u32, wanted: &LanInterfaces) -> Option<Interface> {
    const UP: u32 = 0x1;
    const LOOPBACK: u32 = 0x8;
    const POINT_TO_POINT: u32 = 0x10;
    const MULTICAST: u32 = 0x1000;
    let has = |flag: u32| flags & flag != 0;
    let suits = match wanted {
        // The loopback can multicast on Linux though its flags don't say so.
        LanInterfaces::Auto => has(LOOPBACK) || (has(MULTICAST) && !has(POINT_TO_POINT)),
        LanInterfaces::Named(names) => names.iter().any(|n| n == name),
    };
    if !has(UP) || !suits {
        return None;
    }
    Some(if has(LOOPBACK) { Interface::Loopback } else { Interface::Index(index) })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn loopback_agents_multicast_on_the_loopback_alone() {
        for listen in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            for wanted in [LanInterfaces::Auto, LanInterfaces::Named(vec!["eth0".into()])] {
                assert_eq!(interfaces(listen.parse().unwrap(), &wanted), [Interface::Loopback], "{listen}");
            }
        }
    }

    /// The loopback by its index takes the way that other interfaces take, and stays on this machine.
    #[tokio::test]
    async fn joins_and_sends_by_index() {
        let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/lo/{file}")).unwrap();
        let index = Interface::Index(read("ifindex").trim().parse().unwrap());
        let port = StdUdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = LanConfig { port, ..LanConfig::default() };
        let nowhere = Interface::Index(u32::MAX);
        assert!(LanSockets::open(&config, false, &[nowhere]).is_err(), "no such interface");
        let a = LanSockets::open(&config, false, &[nowhere, index]).unwrap();
        let mut b = LanSockets::open(&config, false, &[index]).unwrap();
        assert_eq!((a.interfaces(), b.interfaces()), (1, 1));
        assert!(!b.update(&[index]), "nothing new");
        assert!(!b.update(&[]) && b.interfaces() == 0 && b.update(&[index]), "gone and back");
        a.send(b"hello");
        for sockets in [&a, &b] {
            let mut buffer = [0; 9];
            let receive = sockets.receive(&mut buffer);
            let patience = std::time::Duration::from_secs(10);
            let (len, _) = tokio::time::timeout(patience, receive).await.unwrap().unwrap();
            assert_eq!(&buffer[..len], b"hello");
        }
    }

    #[test]
    fn which_interfaces_suit() {
        let auto = LanInterfaces::Auto;
        let named = LanInterfaces::Named(vec!["wg0".into()]);
        assert_eq!(usable("eth0", 0x1003, 2, &auto), Some(Interface::Index(2)));
        assert_eq!(usable("eth0", 0x1002, 2, &auto), None, "down");
        assert_eq!(usable("ifb0", 0x83, 3, &auto), None, "can't multicast");
        assert_eq!(usable("wg0", 0x1091, 4, &auto), None, "point to point");
        assert_eq!(usable("wg0", 0x1091, 4, &named), Some(Interface::Index(4)), "but by name");
        assert_eq!(usable("eth0", 0x1003, 2, &named), None);
        assert_eq!(usable("lo", 0x9, 1, &auto), Some(Interface::Loopback));
    }
}
