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

/// What µTP2 leaves alone is what trackers, probes and relays begin with.
const _: () = {
    let (ours, left) = (tracker_proto::PREFIX, utp2::BESIDE);
    assert!(ours[0] == left[0] && ours[1] == left[1] && ours[2] == left[2] && ours.len() == left.len());
    let relayed = RELAYED_PREFIX;
    assert!(relayed[0] == ours[0] && relayed[1] == ours[1] && relayed[2] == ours[2]);
};

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
