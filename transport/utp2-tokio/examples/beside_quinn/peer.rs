//! The quinn side: unidirectional streams from a buffer in memory, chunks counted and dropped. Its defaults, but
//! for windows that never limit, datagrams and AES-128-GCM as ours, and socket buffers as ours.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt};
use serde_json::json;

use crate::transfer::{DATAGRAM, Meter, SOCKET_BUFFER, Settings, WINDOW};

/// Bytes handed over in one call.
const CHUNK: usize = 1 << 20;

fn transport(settings: &Settings) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.receive_window(VarInt::from_u32(WINDOW));
    config.stream_receive_window(VarInt::from_u32(WINDOW));
    config.send_window(u64::from(WINDOW));
    config.initial_mtu(DATAGRAM).min_mtu(DATAGRAM).mtu_discovery_config(None);
    match settings.quinn_cc.as_str() {
        "cubic" => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
        _ => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn bind(server: Option<ServerConfig>) -> anyhow::Result<Endpoint> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(SOCKET_BUFFER)?;
    options.set_send_buffer_size(SOCKET_BUFFER)?;
    // As µTP2 asks for it; refused to ordinary users.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER);
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(EndpointConfig::default(), server, socket, runtime)?)
}

pub(crate) async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())?;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(transport(settings));
    let endpoint = bind(Some(server))?;
    println!("{}/{}", endpoint.local_addr()?, data_encoding::HEXLOWER.encode(&certificate));
    let conn = endpoint.accept().await.context("nobody came")?.await?;
    let bytes = Arc::new(AtomicU64::new(0));
    let mut meter = None;
    let mut readers = tokio::task::JoinSet::new();
    // The end of the connection comes when everything was acknowledged.
    while let Ok(mut stream) = conn.accept_uni().await {
        meter.get_or_insert_with(Meter::start);
        let bytes = bytes.clone();
        readers.spawn(async move {
            while let Ok(Some(chunk)) = stream.read_chunk(CHUNK, true).await {
                bytes.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
        });
    }
    while readers.join_next().await.is_some() {}
    let meter = meter.context("no stream came")?;
    println!("{}", meter.stop(bytes.load(Ordering::Relaxed), json!({})));
    Ok(())
}

pub(crate) async fn send(settings: &Settings, address: &str) -> anyhow::Result<()> {
    let (address, certificate) = address.split_once('/').context("ADDRESS/CERTIFICATE")?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(data_encoding::HEXLOWER.decode(certificate.as_bytes())?.into())?;
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(transport(settings));
    let endpoint = bind(None)?;
    let address: SocketAddr = address.parse()?;
    let conn = endpoint.connect_with(client, address, "localhost")?.await?;
    let meter = Meter::start();
    let each = settings.bytes / settings.quinn_streams.max(1) as u64;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..settings.quinn_streams.max(1) {
        writers.spawn(write(conn.clone(), each));
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let stats = conn.stats();
    let sent = each * settings.quinn_streams.max(1) as u64;
    let result = meter.stop(
        sent,
        json!({
            "sent_packets": stats.path.sent_packets,
            "lost_packets": stats.path.lost_packets,
            "rtt_us": stats.path.rtt.as_micros() as u64,
            "cwnd": stats.path.cwnd,
        }),
    );
    println!("{result}");
    conn.close(0u32.into(), b"done");
    endpoint.wait_idle().await;
    Ok(())
}

/// Writes a stream and waits until all of it was acknowledged.
async fn write(conn: Connection, bytes: u64) -> anyhow::Result<()> {
    let mut stream = conn.open_uni().await?;
    let buffer = bytes::Bytes::from(vec![0x5a; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK as u64);
        stream.write_chunk(buffer.slice(..n as usize)).await?;
        left -= n;
    }
    stream.finish()?;
    stream.stopped().await?;
    Ok(())
}
