//! Sorts what shares the µTP2 socket with µTP2 (`tracker/PROTOCOL.md` §3.1): datagrams of meetings go to our relay, if
//! we are one, all others to discovery.
//!
//! On its own task, because a relay's datagrams may be many and must not wait for discovery's duties.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracker_proto::RELAYED_PREFIX;
use utp2_tokio::Beside;

use crate::relay::Forwarder;

/// Datagrams that wait for discovery; more are lost, as in a full socket, and come again.
const WAITING: usize = 256;

/// Begins sorting; the receiver gets discovery's. Ends with the endpoint.
pub(crate) fn sort(
    mut came: mpsc::Receiver<Beside>,
    relay: Option<Arc<Forwarder>>,
) -> (mpsc::Receiver<Beside>, JoinHandle<()>) {
    let (sender, discovery) = mpsc::channel(WAITING);
    let task = tokio::spawn(async move {
        while let Some((from, mut datagram)) = came.recv().await {
            if datagram.starts_with(&RELAYED_PREFIX) {
                if let Some(relay) = &relay {
                    relay.forward(from, &mut datagram);
                }
            } else {
                // Full, or discovery has ended: lost.
                let _ = sender.try_send((from, datagram));
            }
        }
    });
    (discovery, task)
}
