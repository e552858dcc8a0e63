//! The firmware of a device: opens what is on the flash, finds a peer of its order, fetches the image, tries it, and
//! confirms it when it has reached a peer.
//!
//! One loop over state machines that ask for nothing by themselves: `smoltcp`, `utp2`, `device-core`. It sleeps until
//! the next tick when none of them had anything to do. What it says on the console is for people and tests: one line
//! for each thing that happened. Read `docs/devices.md` first.
#![no_std]
#![no_main]

extern crate alloc;

mod board;
mod nic;
mod peer;
mod stack;
mod start;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use agent_proto::RunSecret;
use cortex_m::peripheral::SCB;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::{entry, exception};
use device_core::{Device, SlotState};
use embedded_storage::nor_flash::ReadNorFlash as _;
use event_schema::{Command, RunAgentState, TransferStats};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::time::Instant as NetTime;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use utp2::{Arrival, Ecn};

use crate::board::{BOARD, Clock, Flash, LAYOUT};
use crate::nic::Nic;
use crate::peer::{After, Peers};

/// The address that this board has in the emulator's network.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The port that sessions are made from.
const PORT: u16 = 7000;
/// Packets that wait to be taken: more than the controller gives in one look.
const WAITING: usize = 9;
/// The longest packet: what `utp2::Config::small` takes.
const PACKET: usize = 1200;
/// Cycles of the processor in a millisecond.
const MILLISECOND: u32 = 25_000;

/// Wakes the loop.
#[exception]
fn SysTick() {}

#[entry]
fn main() -> ! {
    start::start();
    // SAFETY: the only call.
    let flash = unsafe { Flash::take() };
    let why = match run(flash) {
        Ok(never) => match never {},
        Err(why) => why,
    };
    say!("STOPPED {why}");
    loop {
        cortex_m::asm::wfi();
    }
}

enum Never {}

/// All that a device does; why it cannot.
///
/// In parts that are not put together: what one of them needs of the stack is free for the next.
fn run(mut flash: Flash) -> Result<Never, &'static str> {
    let credential = credential(&mut flash)?;
    let mut device = open(flash);
    let device = device.as_mut().map_err(|why| *why)?;
    let seed = board::randomness().ok_or("there is no randomness")?;
    let mut peers = peers(device, credential, seed);
    let peers = peers.as_mut().map_err(|why| *why)?;
    talk(device, peers, &seed)
}

/// The device on this flash.
#[inline(never)]
fn open(flash: Flash) -> Result<Device<Flash>, &'static str> {
    let mut device = Device::open(flash, LAYOUT, BOARD).map_err(|e| {
        say!("not opened: {e}");
        "this flash holds no device"
    })?;
    // The loader's part. Both slots run this program here: the emulated board executes from another memory.
    let booted = device.boot();
    let trial = device.spare() == SlotState::Trial && booted.slot != device.active();
    say!(
        "START {} version {} cursor {} reports {}{}",
        device.id(),
        device.version(),
        device.cursor(),
        device.waiting().count(),
        if trial { " on trial" } else { "" }
    );
    if device.gave_up() {
        end(&mut device, RunAgentState::Failed);
    }
    Ok(device)
}

/// Whom the order says to call.
#[inline(never)]
fn peers(device: &mut Device<Flash>, credential: Vec<u8>, seed: [u8; 32]) -> Result<Peers, &'static str> {
    let Some(Command { body, .. }) = device.order().map_err(|_| "the order cannot be read")? else {
        return Err("there is no order");
    };
    let join = body.join().ok_or("the order is none")?;
    let sealed =
        agent_proto::open(device.key(), &agent_proto::link::seal_context(join.run), &join.sealed_secret)
            .map_err(|_| "the run's secret is not for this device")?;
    let secret =
        <[u8; 32]>::try_from(sealed.as_slice()).map_err(|_| "the run's secret has a wrong length")?;
    let secret = RunSecret::from_bytes(secret);
    Peers::new(device, join, &secret, credential, seed)
}

/// The loop; why it cannot go on.
#[inline(never)]
fn talk(device: &mut Device<Flash>, peers: &mut Peers, seed: &[u8; 32]) -> Result<Never, &'static str> {
    let mut clock = Clock::start();
    let mut nic = Nic::start().map_err(|_| "there is no network controller")?;
    let address = nic.address().map_err(|_| "the network controller does not answer")?;
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(address)));
    config.random_seed = u64::from_le_bytes(core::array::from_fn(|nth| seed[nth] ^ seed[nth + 8]));
    let mut interface = Interface::new(config, &mut nic, NetTime::ZERO);
    interface.update_ip_addrs(|addresses| {
        let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 24));
    });
    interface.routes_mut().add_default_ipv4_route(ROUTER).map_err(|_| "no room for a route")?;
    let packets = |packets: usize| {
        PacketBuffer::new(vec![PacketMetadata::EMPTY; packets], vec![0; packets.min(5) * PACKET])
    };
    let mut socket = Socket::new(packets(WAITING), packets(2));
    socket.bind(PORT).map_err(|_| "the port is taken")?;
    let mut sockets = SocketSet::new(Vec::new());
    let socket = sockets.add(socket);
    tick(MILLISECOND);

    let (mut packet, mut out) = (vec![0; PACKET], Vec::with_capacity(PACKET));
    loop {
        let now = clock.now();
        let at = NetTime::from_micros(now.as_micros() as i64);
        nic.refresh();
        interface.poll(at, &mut nic, &mut sockets);
        let socket = sockets.get_mut::<Socket<'_>>(socket);
        let mut idle = true;
        while let Ok((len, from)) = socket.recv_slice(&mut packet) {
            idle = false;
            let IpAddress::Ipv4(ip) = from.endpoint.addr;
            let remote = SocketAddr::new(IpAddr::V4(ip), from.endpoint.port);
            let arrival = Arrival { remote, at: now, ecn: Ecn::NotEct };
            peers.handle_datagram(now, arrival, &mut packet[..len], device);
        }
        let after = peers.drive(now, device);
        if !matches!(after, After::GoOn) {
            say!("MEMORY heap {} stack {}", start::heap_peak(), stack::peak());
        }
        match after {
            After::GoOn => {}
            After::Restart => {
                say!("RESTART");
                SCB::sys_reset();
            }
            After::End(state) => end(device, state),
        }
        while socket.can_send()
            && let Some(remote) = peers.poll_transmit(now, &mut out)
        {
            idle = false;
            let SocketAddr::V4(to) = remote else { continue };
            let to = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
            // A packet that finds no room is one that was lost.
            let _ = socket.send_slice(&out, to);
        }
        interface.poll(at, &mut nic, &mut sockets);
        if idle {
            cortex_m::asm::wfi();
        }
    }
}

/// Reports how the run ended, once.
fn end(device: &mut Device<Flash>, state: RunAgentState) {
    match device.report_end(state, TransferStats::default(), Some(board::time_of_day())) {
        Ok(true) => {
            say!("END {state:?}");
        }
        Ok(false) => {}
        Err(e) => {
            say!("the end of the run is not reported: {e}");
        }
    }
}

/// What the factory wrote of who this device is for its peers.
fn credential(flash: &mut Flash) -> Result<Vec<u8>, &'static str> {
    let missing = "this device has no credential";
    let mut len = [0; 2];
    flash.read(board::CREDENTIAL.start, &mut len).map_err(|_| missing)?;
    let len = usize::from(u16::from_le_bytes(len));
    if !(1..=utp2::Identity::MAX_CREDENTIAL).contains(&len) {
        return Err(missing);
    }
    let mut credential = vec![0; len];
    flash.read(board::CREDENTIAL.start + 2, &mut credential).map_err(|_| missing)?;
    Ok(credential)
}

/// Wakes the processor so often.
fn tick(cycles: u32) {
    // SAFETY: the only place that takes the timer of the processor.
    let mut timer = unsafe { cortex_m::Peripherals::steal() }.SYST;
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(cycles - 1);
    timer.clear_current();
    timer.enable_counter();
    timer.enable_interrupt();
}
