//! Which addresses to announce for our µTP2 socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tracker_proto::Address;

/// Documentation addresses: asking the routing table about them gives the address of the default route.
pub(crate) const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// For trackers, best first: what the operator advertises, where we listen, where the tracker sees us.
pub(super) fn for_trackers(
    listen: SocketAddr,
    advertise: &[SocketAddr],
    trackers: &[SocketAddr],
) -> Vec<Address> {
    let mut out = sockets(advertise);
    if listen.ip().is_unspecified() {
        let far = FAR.map(|ip| SocketAddr::new(ip, 9));
        let local = trackers.iter().chain(&far).filter_map(|to| local_ip(listen.ip(), *to));
        // Loopback is where the tracker sees us then, so its own answer covers it.
        let local = local.filter(|ip| !ip.is_loopback());
        out.extend(local.filter_map(|ip| Address::socket(SocketAddr::new(ip, listen.port()))));
    } else {
        out.extend(Address::socket(listen));
    }
    if !listen.ip().to_canonical().is_loopback() {
        out.extend(Address::reflexive(listen.port()));
    }
    deduplicated(out)
}

/// For the local network: where the others see us says it best, as each interface has its own address.
pub(super) fn for_lan(listen: SocketAddr, advertise: &[SocketAddr]) -> Vec<Address> {
    let mut out = Vec::new();
    if listen.ip().is_unspecified() {
        out.extend(Address::reflexive(listen.port()));
    } else {
        out.extend(Address::socket(listen));
    }
    out.extend(sockets(advertise));
    deduplicated(out)
}

fn sockets(addrs: &[SocketAddr]) -> Vec<Address> {
    addrs.iter().filter_map(|a| Address::socket(*a)).collect()
}

/// The address that the system would send from to there.
pub(crate) fn towards(to: SocketAddr) -> Option<IpAddr> {
    local_ip(IpAddr::V6(Ipv6Addr::UNSPECIFIED), to)
}

/// The address that the system would send from; connecting a UDP socket sends nothing.
fn local_ip(listen: IpAddr, to: SocketAddr) -> Option<IpAddr> {
    if listen.is_ipv4() && to.is_ipv6() {
        return None;
    }
    let any =
        if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified())
}

fn deduplicated(addrs: Vec<Address>) -> Vec<Address> {
    let mut out: Vec<Address> = Vec::new();
    for addr in addrs {
        if !out.contains(&addr) {
            out.push(addr);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    fn socket(s: &str) -> Address {
        Address::socket(addr(s)).unwrap()
    }

    #[test]
    fn on_loopback_nothing_else_is_announced() {
        let listen = addr("127.0.0.1:4000");
        assert_eq!(for_trackers(listen, &[], &[addr("127.0.0.1:9")]), [socket("127.0.0.1:4000")]);
        assert_eq!(for_lan(listen, &[]), [socket("127.0.0.1:4000")]);
    }

    #[test]
    fn advertised_first_for_trackers_and_reflexive_always() {
        let all = for_trackers(addr("10.0.0.1:4000"), &[addr("203.0.113.1:1"), addr("10.0.0.1:4000")], &[]);
        assert_eq!(
            all,
            [socket("203.0.113.1:1"), socket("10.0.0.1:4000"), Address::reflexive(4000).unwrap()]
        );
    }

    #[test]
    fn everywhere_is_where_others_see_us() {
        let reflexive = Address::reflexive(4000).unwrap();
        assert_eq!(for_lan(addr("0.0.0.0:4000"), &[]), [reflexive]);
        let all = for_trackers(addr("0.0.0.0:4000"), &[], &[addr("127.0.0.1:9")]);
        assert_eq!(all.last(), Some(&reflexive));
        assert!(!all.contains(&socket("127.0.0.1:4000")), "{all:?}");
    }
}
