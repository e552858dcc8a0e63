//! A file over TCP, in as many connections as asked for: each carries one contiguous part.
//!
//! A connection: 8 bytes place in the file, 8 bytes length, the bytes, and back 8 bytes: how many arrived.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::peer::{CHUNK, Common, LISTENING};

fn socket(common: &Common, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    let congestion = &common.congestion;
    socket
        .set_tcp_congestion(congestion.as_bytes())
        .with_context(|| format!("this kernel has no {congestion} for TCP"))?;
    Ok(socket)
}

pub(super) fn send(common: &Common, path: &Path, to: SocketAddr, connections: u32) -> Result<u64> {
    let file = Arc::new(File::open(path).with_context(|| format!("opening {}", path.display()))?);
    let size = file.metadata()?.len();
    let part = size.div_ceil(u64::from(connections));
    let threads: Vec<_> = (0..u64::from(connections))
        .map(|index| {
            let begin = (index * part).min(size);
            let len = part.min(size - begin);
            let (file, common) = (file.clone(), common.clone());
            std::thread::spawn(move || send_part(&common, &file, to, begin, len))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a sending thread panicked"))??;
    }
    Ok(size)
}

fn send_part(common: &Common, file: &File, to: SocketAddr, begin: u64, len: u64) -> Result<()> {
    let socket = socket(common, to)?;
    socket.connect(&to.into()).with_context(|| format!("connecting to {to}"))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&begin.to_be_bytes())?;
    stream.write_all(&len.to_be_bytes())?;
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < len {
        let now = usize::try_from(len - sent).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut chunk[..now], begin + sent)?;
        stream.write_all(&chunk[..now])?;
        sent += now as u64;
    }
    let arrived = number(&mut stream).context("waiting for the receiver's word")?;
    ensure!(arrived == len, "{arrived} of {len} bytes arrived");
    Ok(())
}

pub(super) fn receive(common: &Common, listen: SocketAddr, out: &Path, size: u64) -> Result<()> {
    let file = Arc::new(File::create(out).with_context(|| format!("creating {}", out.display()))?);
    file.set_len(size)?;
    let socket = socket(common, listen)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(256)?;
    let listener = TcpListener::from(socket);
    println!("{LISTENING} on {listen}");
    let (mut promised, mut threads) = (0, Vec::new());
    while promised < size {
        let (mut stream, _) = listener.accept()?;
        let (begin, len) = (number(&mut stream)?, number(&mut stream)?);
        promised += len;
        ensure!(len <= size && begin <= size - len && promised <= size, "more than {size} bytes");
        let file = file.clone();
        threads.push(std::thread::spawn(move || receive_part(stream, &file, begin, len)));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a receiving thread panicked"))??;
    }
    Ok(())
}

fn receive_part(mut stream: TcpStream, file: &File, begin: u64, len: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut got = 0;
    while got < len {
        let most = usize::try_from(len - got).unwrap_or(CHUNK).min(CHUNK);
        let now = stream.read(&mut chunk[..most])?;
        ensure!(now > 0, "the sender left after {got} of {len} bytes");
        file.write_all_at(&chunk[..now], begin + got)?;
        got += now as u64;
    }
    stream.write_all(&got.to_be_bytes())?;
    Ok(())
}

fn number(stream: &mut TcpStream) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
