//! Errors of the calls an application makes. What a peer does wrong is a [`crate::CloseReason`].

use core::fmt;

/// Why [`crate::Endpoint::connect`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// No secret was added for this context.
    UnknownContext,
    /// Early messages longer than [`crate::Config::max_message`] or than half of the message buffer.
    EarlyTooLong,
    /// [`crate::Config::max_connections`] is reached.
    TooManyConnections,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EarlyTooLong => "the early messages are too long",
            Self::UnknownContext => "no secret is known for this context",
            Self::TooManyConnections => "the endpoint has as many connections as it may have",
        })
    }
}

impl core::error::Error for ConnectError {}

/// Why [`crate::Connection::send_message`] or [`crate::Connection::send_block`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The buffer or queue is full; for messages, [`crate::Event::MessagesWritable`] tells when to try again.
    Blocked,
    /// Longer than the peer or we accept; for blocks, empty.
    TooLarge,
    /// The connection is closing or not established.
    Closed,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "no room now",
            Self::TooLarge => "length outside what may be sent",
            Self::Closed => "the connection is not open",
        })
    }
}

impl core::error::Error for SendError {}

/// A block's bytes could not be read; the reason is the application's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceError;

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the block could not be read")
    }
}

impl core::error::Error for SourceError {}
