//! Frames over a byte stream: length, then message (`edge-agent/PROTOCOL.md` §2.1).
//!
//! Reading is cancel-safe, writing is not.

use std::io;

use agent_proto::link::{FrameBuffer, ToAgent, ToGateway, frame};
use event_schema::DecodeError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

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
    Protocol(#[from] DecodeError),
}

pub(super) struct FrameReader<R> {
    stream: R,
    buffer: FrameBuffer,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, buffer: FrameBuffer::default() }
    }

    /// The next message, none longer than `max` bytes.
    pub(super) async fn next(&mut self, max: usize) -> Result<ToGateway, FrameError> {
        loop {
            if let Some(message) = self.buffered(max)? {
                return Ok(message);
            }
            match self.stream.read_buf(self.buffer.space()).await? {
                0 if self.buffer.is_empty() => return Err(FrameError::Closed),
                0 => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
                _ => {}
            }
        }
    }

    /// A message that has arrived already, if there is a whole one.
    pub(super) fn buffered(&mut self, max: usize) -> Result<Option<ToGateway>, FrameError> {
        let Some(message) = self.buffer.next(max)? else { return Ok(None) };
        Ok(Some(ToGateway::decode(message)?))
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
