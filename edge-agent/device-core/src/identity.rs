//! The key area: who the device is, and which fleet's (DEVICE_FORMAT.md §2.1).

use embedded_storage::nor_flash::NorFlash;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::codec::{Reader, Writing};
use crate::image::Board;
use crate::layout::{Layout, Region};
use crate::medium::{Fault, Medium, check};

const MAGIC: [u8; 7] = *b"FLOTKEY";
const VERSION: u8 = 1;
const LEN: usize = 96;

/// What the key area holds.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Identity {
    pub(crate) seed: [u8; 32],
    pub(crate) root_key: [u8; 32],
    #[zeroize(skip)]
    pub(crate) board: Board,
}

/// What was found in the key area.
pub(crate) enum Found {
    Identity(Identity),
    /// A good copy of a newer version.
    Newer,
    Nothing,
}

fn copies<F: NorFlash>(layout: &Layout) -> [Region; 2] {
    let len = F::ERASE_SIZE as u32;
    [0, len].map(|offset| Region { start: layout.identity.start + offset, len })
}

pub(crate) fn read<F: NorFlash>(medium: &mut Medium<F>, layout: &Layout) -> Result<Found, Fault> {
    let mut found = Found::Nothing;
    for copy in copies::<F>(layout) {
        let mut bytes = [0; LEN];
        medium.read(copy.start, &mut bytes)?;
        let good = check(Sha256::new().chain_update(&bytes[..88])) == bytes[88..];
        if good && bytes[..7] == MAGIC {
            let one = parse(&bytes);
            bytes.zeroize();
            match one {
                Some(identity) => return Ok(Found::Identity(identity)),
                None => found = Found::Newer,
            }
        }
        bytes.zeroize();
    }
    Ok(found)
}

fn parse(bytes: &[u8; LEN]) -> Option<Identity> {
    let mut from = Reader(&bytes[7..88]);
    let VERSION = from.u8()? else { return None };
    Some(Identity { seed: from.array()?, root_key: from.array()?, board: Board(from.array()?) })
}

/// Erases both copies, so that the device is nobody.
pub(crate) fn clear<F: NorFlash>(medium: &mut Medium<F>, layout: &Layout) -> Result<(), Fault> {
    copies::<F>(layout).into_iter().try_for_each(|copy| medium.erase(copy))
}

/// Writes both copies where they were cleared. One that holds is enough.
pub(crate) fn write<F: NorFlash>(
    medium: &mut Medium<F>,
    layout: &Layout,
    identity: &Identity,
) -> Result<(), Fault> {
    let mut bytes = [0; LEN];
    let mut out = Writing::new(&mut bytes);
    out.put(&MAGIC).put(&[VERSION]).put(&identity.seed).put(&identity.root_key).put(&identity.board.0);
    let sum = check(Sha256::new().chain_update(&bytes[..88]));
    bytes[88..].copy_from_slice(&sum);
    let written = copies::<F>(layout).map(|copy| medium.write(copy.start, &bytes));
    bytes.zeroize();
    if written.iter().any(Result::is_ok) { Ok(()) } else { Err(Fault::NotHeld) }
}
