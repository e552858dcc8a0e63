//! `old-kernel 3.2|2.6.32 PROGRAM [ARGUMENT]…`: becomes the program, for which the kernel seems to be that Linux.
//!
//! What came later is refused as that kernel refuses it, by a filter of system calls (seccomp) that all children inherit:
//! - system calls: x86-64's table is only ever added to, and its last rows in 3.2 are 310 and 311, `process_vm_readv` and
//!   `process_vm_writev` (syscalls(2): since 3.2); 312, `kcmp`, came with 3.5. So all from 312 on are answered with ENOSYS:
//!   renameat2 (3.15), getrandom, memfd_create and seccomp (3.17), bpf (3.18), execveat (3.19), membarrier (4.3),
//!   copy_file_range (4.5), preadv2 and pwritev2 (4.6), statx (4.11), rseq (4.18), io_uring (5.1), pidfd_open and clone3
//!   (5.3), openat2 (5.6), faccessat2 (5.8), close_range (5.9), epoll_pwait2 (5.11) and what is newer.
//!   For 2.6.32 it is all from 299 on: recvmmsg came with 2.6.33, prlimit64 with 2.6.36, name_to_handle_at with 2.6.39,
//!   syncfs and sendmmsg with 3.0. (accept4 is 288 here; on ARM it came with 2.6.36.)
//! - socket options (socket(7), udp(7), the kernel's `asm-generic/socket.h` and `udp.h`): SO_REUSEPORT (15; 3.9) and all
//!   above SO_RXQ_OVFL (40) of SOL_SOCKET, and all above UDP_ENCAP (100) of SOL_UDP, such as UDP_SEGMENT and UDP_GRO:
//!   ENOPROTOOPT.
//! - open and openat with `O_TMPFILE` (open(2): since 3.11), which an old kernel takes for opening the folder for writing:
//!   EISDIR.
//!
//! It is not the kernel itself: what old calls did differently is not seen here.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use seccompiler::sock_filter;

/// AUDIT_ARCH_X86_64.
const X86_64: u32 = 0xc000_003e;
/// Where `struct seccomp_data` has the number, the processor and the low half of arguments.
const NUMBER: u32 = 0;
const PROCESSOR: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// What came after each of these kernels begins with this number.
const KERNELS: [(&str, u32); 2] = [("3.2", 312), ("2.6.32", 299)];
const OPEN: u32 = 2;
const SETSOCKOPT: u32 = 54;
const GETSOCKOPT: u32 = 55;
const OPENAT: u32 = 257;
/// `__O_TMPFILE`, the bit that `O_TMPFILE` has beside `O_DIRECTORY`.
const TMPFILE: u32 = 0o20_000_000;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const fn refuse(errno: Errno) -> u32 {
    0x0005_0000 | errno.raw_os_error().unsigned_abs()
}

// Classic BPF: load a word, compare with a constant, end.
const fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}
const fn jump(code: u16, k: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code, jt: then, jf: otherwise, k }
}
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const fn end(action: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k: action }
}

/// Jumps are counted from the next line.
fn filter(first_newer: u32) -> Vec<sock_filter> {
    vec![
        load(PROCESSOR),
        jump(EQUAL, X86_64, 1, 0),
        end(KILL),
        load(NUMBER),
        jump(AT_LEAST, first_newer, 0, 1),
        end(refuse(Errno::NOSYS)),
        jump(EQUAL, SETSOCKOPT, 5, 0),
        jump(EQUAL, GETSOCKOPT, 4, 0),
        jump(EQUAL, OPEN, 13, 0),
        jump(EQUAL, OPENAT, 14, 0),
        end(ALLOW),
        end(ALLOW),
        // 12: an option of a socket; its level is argument 1, its number argument 2.
        load(argument(1)),
        jump(EQUAL, 1, 2, 0),
        jump(EQUAL, 17, 4, 0),
        end(ALLOW),
        load(argument(2)),
        jump(EQUAL, 15, 3, 0),
        jump(GREATER, 40, 2, 7),
        load(argument(2)),
        jump(GREATER, 100, 0, 5),
        end(refuse(Errno::NOPROTOOPT)),
        // 22: open; its flags are argument 1.
        load(argument(1)),
        jump(ANY_BIT, TMPFILE, 3, 2),
        // 24: openat; its flags are argument 2.
        load(argument(2)),
        jump(ANY_BIT, TMPFILE, 1, 0),
        end(ALLOW),
        end(refuse(Errno::ISDIR)),
    ]
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    const USAGE: &str = "usage: old-kernel 3.2|2.6.32 PROGRAM [ARGUMENT]…";
    let kernel = args.next().context(USAGE)?;
    let (_, first_newer) = KERNELS.into_iter().find(|(name, _)| kernel == *name).context(USAGE)?;
    let program = args.next().context(USAGE)?;
    ensure!(cfg!(target_arch = "x86_64"), "the table is that of x86-64");
    seccompiler::apply_filter(&filter(first_newer)).context("the kernel takes no filter of system calls")?;
    holds().context("the filter does not do what it is for")?;
    bail!("{}: {}", program.display(), Command::new(&program).args(args).exec())
}

/// A filter with a fault in it must not look like an agent without one.
fn holds() -> Result<()> {
    use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, StatxFlags};
    let memory = rustix::fs::memfd_create("x", MemfdFlags::empty()).map(|_| ());
    ensure!(memory == Err(Errno::NOSYS), "memfd_create: {memory:?}");
    let told = rustix::fs::statx(CWD, ".", AtFlags::empty(), StatxFlags::TYPE).map(|_| ());
    ensure!(told == Err(Errno::NOSYS), "statx: {told:?}");
    let made = rustix::fs::open(".", OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR).map(|_| ());
    ensure!(made == Err(Errno::ISDIR), "O_TMPFILE: {made:?}");
    let folder = rustix::fs::open(".", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map(|_| ());
    ensure!(folder.is_ok(), "a folder: {folder:?}");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let shared = rustix::net::sockopt::set_socket_reuseport(&socket, true);
    ensure!(shared == Err(Errno::NOPROTOOPT), "SO_REUSEPORT: {shared:?}");
    let address = rustix::net::sockopt::set_socket_reuseaddr(&socket, true);
    ensure!(address.is_ok(), "SO_REUSEADDR: {address:?}");
    Ok(())
}
