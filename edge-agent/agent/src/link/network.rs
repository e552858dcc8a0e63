//! Whether this machine has come into another network: a vehicle that rolls into range shall not sit out a pause that was
//! measured for a gateway that is down, nor wait on a connection from an address that it has no more.
//!
//! Looks at the address that the system would send from, to the gateway and to anywhere, every second: that costs a few
//! system calls, sends nothing, and works alike on every system.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::discovery::{FAR, local_ip};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// The ways out of this machine as they were when somebody began to wait.
#[derive(Clone, Debug)]
pub(crate) struct WaysOut {
    to: Vec<SocketAddr>,
    from: Vec<Option<IpAddr>>,
    /// How often it is looked.
    every: Duration,
}

impl WaysOut {
    /// As they are now. `gateway`: where it was met last, or its address if that is no name.
    pub(crate) fn now(gateway: Option<SocketAddr>) -> Self {
        let anywhere = FAR.map(|ip| SocketAddr::new(ip, 9));
        let to: Vec<SocketAddr> = gateway.into_iter().chain(anywhere).collect();
        let from = to.iter().map(|to| local_ip(*to)).collect();
        Self { to, from, every: INTERVAL }
    }

    /// Returns when there is a way that there was not.
    pub(crate) async fn opened(&self) {
        self.wait(|was, now| now.is_some() && now != was).await;
    }

    /// Returns when an address is gone that connections may stand on, and there is another way instead.
    pub(crate) async fn moved(&self) {
        self.wait(|was, now| now.is_some() && now != was && was.is_none_or(|was| !is_ours(was))).await;
    }

    async fn wait(&self, enough: impl Fn(Option<IpAddr>, Option<IpAddr>) -> bool) {
        loop {
            tokio::time::sleep(self.every).await;
            if self.to.iter().zip(&self.from).any(|(to, was)| enough(*was, local_ip(*to))) {
                return;
            }
        }
    }
}

/// Whether this machine has the address still. If that cannot be told it has.
fn is_ours(ip: IpAddr) -> bool {
    !matches!(UdpSocket::bind((ip, 0)), Err(error) if error.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_way_to_an_address() {
        assert_eq!(local_ip(SocketAddr::new(LOOPBACK, 9)), Some(LOOPBACK));
        assert!(is_ours(LOOPBACK));
        // Of another machine, by definition.
        assert!(!is_ours(FAR[0]));
    }

    #[tokio::test]
    async fn what_is_new_is_noticed_and_what_stays_is_not() {
        let waits = async |from: Option<IpAddr>| {
            let every = Duration::from_millis(5);
            let ways = WaysOut { to: vec![SocketAddr::new(LOOPBACK, 9)], from: vec![from], every };
            let limit = 20 * every;
            let opened = tokio::time::timeout(limit, ways.opened()).await.is_ok();
            (opened, tokio::time::timeout(limit, ways.moved()).await.is_ok())
        };
        assert_eq!(waits(Some(LOOPBACK)).await, (false, false), "all is as it was");
        assert_eq!(waits(None).await, (true, true), "there was no network");
        assert_eq!(waits(Some(FAR[0])).await, (true, true), "it was another one, and that is gone");
        let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        if is_ours(other) {
            assert_eq!(waits(Some(other)).await, (true, false), "connections go on from there");
        }
    }
}
