//! Frames over a byte stream: length, then message (`edge-agent/PROTOCOL.md` §2.1).
//!
//! The reader's buffer grows with what arrived, never with what was announced, and goes back to its
//! idle size when it is empty. Reading is cancel-safe, writing is not.

use std::io;

use agent_proto::link::{ToAgent, ToGateway, frame, frame_len};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Buffer of an idle connection: a ping fits many times.
const IDLE_LEN: usize = 512;
/// What is asked of the stream at a time: a TLS record.
const CHUNK_LEN: usize = 16 * 1024;

/// Why no message can be had any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The peer closed, or the network broke.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// The peer closed between two frames.
    #[error("closed by the agent")]
    Closed,
    /// The peer does not keep to the protocol.
    #[error("protocol broken: {0}")]
    Protocol(String),
}

pub(super) struct FrameReader<R> {
    stream: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were handed out already.
    taken: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new(), taken: 0 }
    }

    /// The next message, none longer than `max` bytes.
    pub(super) async fn next(&mut self, max: usize) -> Result<ToGateway, FrameError> {
        loop {
            if let Some(message) = self.buffered(max)? {
                return Ok(message);
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            let missing = self.frame_end().map_or(IDLE_LEN, |end| end.saturating_sub(self.buffer.len()));
            let wanted = missing.clamp(IDLE_LEN, CHUNK_LEN);
            if self.buffer.is_empty() {
                self.buffer.shrink_to(IDLE_LEN);
            }
            self.buffer.reserve(wanted);
            match self.stream.read_buf(&mut self.buffer).await? {
                0 if self.buffer.is_empty() => return Err(FrameError::Closed),
                0 => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
                _ => {}
            }
        }
    }

    /// A message that has arrived already, if there is a whole one.
    pub(super) fn buffered(&mut self, max: usize) -> Result<Option<ToGateway>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let len = match frame_len(*header) {
            Ok(len) if len <= max => len,
            _ => return Err(FrameError::Protocol(format!("a frame of over {max} bytes"))),
        };
        let Some(body) = body.get(..len) else { return Ok(None) };
        let message = ToGateway::decode(body).map_err(|e| FrameError::Protocol(e.to_string()))?;
        self.taken += 4 + len;
        Ok(Some(message))
    }

    /// Where the frame at the buffer's beginning ends, once its length is known.
    fn frame_end(&self) -> Option<usize> {
        let header = self.buffer.first_chunk::<4>()?;
        Some(4 + frame_len(*header).ok()?)
    }
}

/// Writes one message and flushes it.
pub(super) async fn write<W: AsyncWrite + Unpin>(stream: &mut W, message: ToAgent) -> io::Result<()> {
    stream.write_all(&frame(&message.encode())).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_proto::link::Ping;

    #[tokio::test]
    async fn messages_come_out_however_the_bytes_are_cut() {
        let ping = frame(&ToGateway::from(Ping {}).encode());
        for cut in 1..ping.len() {
            let bytes = [ping.clone(), ping.clone()].concat();
            let (a, b) = bytes.split_at(cut);
            let stream = tokio_test_stream(vec![a.to_vec(), b.to_vec()]);
            let mut reader = FrameReader::new(stream);
            for _ in 0..2 {
                assert_eq!(reader.next(64).await.expect("a ping"), ToGateway::from(Ping {}));
            }
            assert!(matches!(reader.next(64).await, Err(FrameError::Closed)));
        }
    }

    #[tokio::test]
    async fn long_frames_and_garbage_are_told() {
        let cases: [&[u8]; 4] =
            [&[255; 8], &[65, 0, 0, 0, 1, 2, 3], &[3, 0, 0, 0, 9, 9, 9], &[2, 0, 0, 0, 200]];
        for (i, case) in cases.into_iter().enumerate() {
            let mut reader = FrameReader::new(tokio_test_stream(vec![case.to_vec()]));
            let error = reader.next(64).await.expect_err("bad bytes");
            match i {
                3 => assert!(matches!(error, FrameError::Io(_)), "{error}"),
                _ => assert!(matches!(error, FrameError::Protocol(_)), "{error}"),
            }
        }
    }

    /// A stream that gives these pieces, one per read.
    fn tokio_test_stream(pieces: Vec<Vec<u8>>) -> impl AsyncRead + Unpin {
        struct Pieces(std::collections::VecDeque<Vec<u8>>);
        impl AsyncRead for Pieces {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                if let Some(piece) = self.0.pop_front() {
                    buf.put_slice(&piece);
                }
                std::task::Poll::Ready(Ok(()))
            }
        }
        Pieces(pieces.into())
    }
}
