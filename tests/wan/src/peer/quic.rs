//! A file over QUIC (quinn), in many short streams.
//!
//! Streams of at most [`PART`]: the receiver of current quinn gives up on a stream with more than a thousand gaps,
//! which one long stream on a fast lossy link always reaches. A stream: 8 bytes place in the file, then the bytes.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{ClientConfig, ConnectionError, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::peer::{CHUNK, Common, LISTENING};

/// Bytes of the file in one stream.
const PART: u64 = 1 << 20;

/// Streams being written at a time; the window bounds what is under way.
const STREAMS: usize = 256;

/// Asked for the sockets' buffers, the same as `utp2` asks for.
const RECEIVE_ROOM: usize = 32 << 20;
const SEND_ROOM: usize = 8 << 20;

/// The name in the certificate.
const NAME: &str = "wan";

fn transport(common: &Common) -> Result<Arc<TransportConfig>> {
    let mut config = TransportConfig::default();
    match common.congestion.as_str() {
        "bbr" => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        "cubic" => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
        other => bail!("quinn has no {other}; use bbr or cubic"),
    };
    config
        .max_concurrent_uni_streams(VarInt::from_u32(1 << 16))
        .receive_window(VarInt::from_u64(common.window)?)
        .stream_receive_window(VarInt::from_u64(PART * 2)?)
        .send_window(common.window);
    Ok(Arc::new(config))
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(RECEIVE_ROOM)?;
    socket.set_send_buffer_size(SEND_ROOM)?;
    socket.bind(&address.into())?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(EndpointConfig::default(), server, socket.into(), runtime)?)
}

pub(super) fn send(common: &Common, path: &Path, to: SocketAddr) -> Result<u64> {
    let certificate = common.cert.as_ref().context("--cert is needed")?;
    let certificate = fs::read(certificate).with_context(|| format!("reading {}", certificate.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(certificate))?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    config.transport_config(transport(common)?);
    let file = Arc::new(File::open(path).with_context(|| format!("opening {}", path.display()))?);
    let size = file.metadata()?.len();
    Runtime::new()?.block_on(async move {
        let any: SocketAddr = if to.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
        let endpoint = endpoint(any, None)?;
        let connection = endpoint.connect_with(config, to, NAME)?.await.context("connecting")?;
        let slots = Arc::new(Semaphore::new(STREAMS));
        let mut streams = JoinSet::new();
        for begin in (0..size).step_by(usize::try_from(PART)?) {
            let slot = slots.clone().acquire_owned().await?;
            let (file, connection) = (file.clone(), connection.clone());
            streams.spawn(async move {
                let mut bytes = vec![0; usize::try_from(PART.min(size - begin))?];
                file.read_exact_at(&mut bytes, begin)?;
                let mut stream = connection.open_uni().await?;
                stream.write_all(&begin.to_be_bytes()).await?;
                stream.write_all(&bytes).await?;
                stream.finish()?;
                drop(slot);
                anyhow::Ok(())
            });
            while let Some(done) = streams.try_join_next() {
                done??;
            }
        }
        while let Some(done) = streams.join_next().await {
            done??;
        }
        match connection.closed().await {
            ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(0) => Ok(size),
            other => Err(anyhow!(other).context("waiting for the receiver's word")),
        }
    })
}

pub(super) fn receive(common: &Common, listen: SocketAddr, out: &Path, size: u64) -> Result<()> {
    let file = Arc::new(File::create(out).with_context(|| format!("creating {}", out.display()))?);
    file.set_len(size)?;
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    fs::write(common.cert.as_ref().context("--cert is needed")?, &certificate)?;
    let mut config = ServerConfig::with_single_cert(vec![certificate], key.into())?;
    config.transport_config(transport(common)?);
    Runtime::new()?.block_on(async move {
        let endpoint = endpoint(listen, Some(config))?;
        println!("{LISTENING} on {listen}");
        let connection = endpoint.accept().await.context("the endpoint ended")?.await?;
        let arrived = Arc::new(AtomicU64::new(0));
        let mut streams = JoinSet::new();
        while arrived.load(Ordering::Relaxed) < size {
            tokio::select! {
                stream = connection.accept_uni() => {
                    streams.spawn(receive_part(stream?, file.clone(), size, arrived.clone()));
                }
                Some(done) = streams.join_next() => done??,
            }
        }
        connection.close(VarInt::from_u32(0), b"all there");
        endpoint.wait_idle().await;
        Ok(())
    })
}

async fn receive_part(
    mut stream: quinn::RecvStream,
    file: Arc<File>,
    size: u64,
    arrived: Arc<AtomicU64>,
) -> Result<()> {
    let mut begin = [0; 8];
    stream.read_exact(&mut begin).await?;
    let mut at = u64::from_be_bytes(begin);
    let mut chunk = vec![0; CHUNK];
    let mut got = 0;
    while let Some(now) = stream.read(&mut chunk).await? {
        ensure!(now as u64 <= size.saturating_sub(at), "more than {size} bytes");
        file.write_all_at(&chunk[..now], at)?;
        at += now as u64;
        got += now as u64;
    }
    arrived.fetch_add(got, Ordering::Relaxed);
    Ok(())
}
