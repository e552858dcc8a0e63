//! One end of the link: a network namespace with a TUN device, an address and settings of its own.
//!
//! A namespace without a name: a thread has it, everything the thread starts inherits it, and the kernel removes it
//! with all that is in it when the last process is gone, whatever that process died of. Nothing is left behind.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::CloneFlags;
use tun_rs::{DeviceBuilder, SyncDevice};

/// The device's name, the same in both namespaces.
pub const DEVICE: &str = "wan0";

/// Packets the kernel keeps for the emulator while it sleeps: 20 ms at a million packets a second.
const DEVICE_QUEUE: u32 = 20_000;

/// What TCP may use for a connection's buffers: 2 × the bandwidth-delay product of 10 Gbit/s and 200 ms.
const TCP_BUFFER: &str = "4096 131072 536870912";

/// This machine or user can't have what the link needs. The text says what to do.
#[derive(Debug)]
pub struct NotPermitted(String);

impl std::fmt::Display for NotPermitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPermitted {}

type Job = Box<dyn FnOnce() + Send>;

/// One end of the link.
pub struct Side {
    address: Ipv4Addr,
    device: Arc<SyncDevice>,
    /// The thread ends when this does.
    jobs: mpsc::Sender<Job>,
}

impl Side {
    /// Makes the namespace and its device. `offloads`: whether frames for many packets cross whole.
    ///
    /// # Errors
    /// [`NotPermitted`] if this user may not, anything else if it went wrong.
    pub(crate) fn new(number: u8, mtu: u16, offloads: bool) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new().name(format!("side {number}")).spawn(move || {
            let _ = tell.send(open(offloads));
            inbox.iter().for_each(|job| job());
        })?;
        let device = Arc::new(told.recv().context("the side's thread ended")??);
        let address = Ipv4Addr::new(10, 77, 0, number);
        let side = Self { address, device, jobs };
        side.set_up(number, mtu)?;
        Ok(side)
    }

    fn set_up(&self, number: u8, mtu: u16) -> Result<()> {
        let sysctls = [
            ("ipv4/tcp_rmem", TCP_BUFFER),
            ("ipv4/tcp_wmem", TCP_BUFFER),
            // Every transfer begins without knowing the path.
            ("ipv4/tcp_no_metrics_save", "1"),
            ("ipv4/tcp_slow_start_after_idle", "0"),
        ];
        self.run(move || {
            for (name, value) in sysctls {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).with_context(|| format!("setting {}", path.display()))?;
            }
            anyhow::Ok(())
        })??;
        // Where the kernel has IPv6: nothing of its own shall cross the link.
        let quiet = format!("/proc/sys/net/ipv6/conf/{DEVICE}/accept_ra");
        let _ = self.run(move || fs::write(quiet, "0"))?;
        let _ = self.ip(&[&format!("link set {DEVICE} addrgenmode none")]);
        self.ip(&[
            "link set lo up",
            &format!("link set {DEVICE} mtu {mtu} txqueuelen {DEVICE_QUEUE}"),
            &format!("addr add {}/32 dev {DEVICE}", self.address),
            &format!("link set {DEVICE} up"),
            // Not bound to the address: it stays when the address changes.
            &format!("route add 10.77.0.0/24 dev {DEVICE}"),
        ])?;
        let v6 = [
            &format!("addr add fd77::{number}/128 dev {DEVICE} nodad"),
            &format!("route add fd77::/64 dev {DEVICE}"),
        ];
        let _ = self.ip(&v6.map(String::as_str));
        Ok(())
    }

    /// The address of this end.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    pub(crate) fn device(&self) -> Arc<SyncDevice> {
        self.device.clone()
    }

    /// Runs `job` in this namespace: sockets it makes, and programs it starts, belong there.
    ///
    /// # Errors
    /// If the side's thread is gone because an earlier job panicked.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (tell, told) = mpsc::channel();
        let job = Box::new(move || {
            let _ = tell.send(job());
        });
        self.jobs.send(job).map_err(|_| anyhow!("the side's thread is gone"))?;
        told.recv().context("a job on the side's thread panicked")
    }

    /// Gives this end another address and takes the old one away: what a vehicle meets when it changes networks.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn change_address(&mut self, to: Ipv4Addr) -> Result<()> {
        let old = std::mem::replace(&mut self.address, to);
        self.ip(&[&format!("addr add {to}/32 dev {DEVICE}"), &format!("addr del {old}/32 dev {DEVICE}")])
    }

    /// Runs commands of `ip` here, all of them or an error.
    fn ip(&self, lines: &[&str]) -> Result<()> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        self.run(move || {
            for line in &lines {
                let output = Command::new("ip").args(line.split(' ')).stdin(Stdio::null()).output();
                let output = output.map_err(no_ip)?;
                let errors = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "`ip {line}`: {}", errors.trim());
            }
            anyhow::Ok(())
        })?
    }

    /// Packets the kernel dropped at the device because nobody read them.
    pub(crate) fn missed(&self) -> u64 {
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default());
        missed(&table.unwrap_or_default())
    }

    /// Datagrams that arrived here and found their socket's buffer full: the program was too slow, or its buffer too
    /// small.
    pub(crate) fn socket_drops(&self) -> u64 {
        let tables = self.run(|| {
            let read = |name: &str| fs::read_to_string(Path::new("/proc/thread-self/net").join(name));
            read("snmp").unwrap_or_default() + &read("snmp6").unwrap_or_default()
        });
        socket_drops(&tables.unwrap_or_default())
    }
}

fn no_ip(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return NotPermitted("the program `ip` is missing: install iproute2".into()).into();
    }
    anyhow::Error::new(error).context("running ip")
}

/// Makes a namespace for this thread and a device in it.
fn open(offloads: bool) -> Result<SyncDevice> {
    if let Err(error) = nix::sched::unshare(CloneFlags::CLONE_NEWNET) {
        bail!(NotPermitted(format!(
            "no network namespace ({error}): run it as root, or as `unshare --map-root-user COMMAND`"
        )));
    }
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .with(|builder| {
            builder.offload(offloads);
        })
        .enable(false)
        .build_sync();
    let device = device.map_err(|error| {
        NotPermitted(format!(
            "no TUN device ({error}): /dev/net/tun must exist and be open to you (`modprobe tun`; in a container, \
             pass the device on)"
        ))
    })?;
    device.set_nonblocking(true).context("making the device non-blocking")?;
    if offloads && !device.udp_gso() {
        bail!(NotPermitted("the kernel has no segmentation offload for UDP on TUN: 6.2 or newer".into()));
    }
    Ok(device)
}

/// The dropped packets in a table such as /proc/net/dev: the fourth figure of the transmitting half.
fn missed(table: &str) -> u64 {
    let row = table.lines().find_map(|line| line.trim().strip_prefix(DEVICE)?.strip_prefix(':'));
    row.and_then(|row| row.split_whitespace().nth(11)?.parse().ok()).unwrap_or(0)
}

/// `RcvbufErrors` of UDP in the tables /proc/net/snmp (names above figures) and snmp6 (name and figure).
fn socket_drops(tables: &str) -> u64 {
    let mut rows = tables.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, figures) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    let mut v4 = names.split(' ').zip(figures.split(' '));
    let v4 = v4.find(|(name, _)| *name == "RcvbufErrors").map(|(_, figure)| figure);
    let v6 = tables.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).map(str::trim);
    [v4, v6].into_iter().flatten().filter_map(|figure| figure.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_sockets_are_found() {
        let tables =
            "Ip: a b\nIp: 1 2\nUdp: InDatagrams RcvbufErrors MemErrors\nUdp: 5 6 7\nUdp6RcvbufErrors \t 30\n";
        assert_eq!(socket_drops(tables), 36);
        assert_eq!(socket_drops(""), 0);
    }

    #[test]
    fn dropped_packets_are_found() {
        let table = "Inter-| Receive | Transmit\n face |bytes packets errs drop …\n\
                     lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     wan0: 1 2 3 4 5 6 7 8 100 101 102 103 104 105 106 107\n";
        assert_eq!(missed(table), 103);
        assert_eq!(missed(""), 0);
    }
}
