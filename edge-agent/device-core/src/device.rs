//! A device as its firmware sees it: made once, opened at every start, changed by the operations in `orders`, `outbox`
//! and `update`.

use core::fmt;

use agent_proto::TrustBundle;
use ed25519_dalek::SigningKey;
use embedded_storage::nor_flash::NorFlash;
use event_schema::{AgentId, Signed, Timestamp};

use crate::core_state::{Core, Slot, SlotState};
use crate::identity::{self, Found, Identity};
use crate::image::Board;
use crate::journal::MountFault;
use crate::layout::{Layout, LayoutFault};
use crate::medium::{Fault, Medium};
use crate::store::{Item, Store, Worn};
use crate::trust::Trust;
use crate::update::Incoming;

/// Why an operation was not done. Nothing was changed, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The flash cannot be read, or not be written where it must.
    Flash,
    /// The journal does not hold any more: this device can change nothing for good.
    Worn,
    /// The answer has no room among the reports that wait: bring some home, then ask again.
    OutboxFull,
    /// What is to be stored is over a limit (DEVICE_FORMAT.md §8).
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flash => "the flash cannot be read or written",
            Self::Worn => "the journal's flash is worn: nothing can be changed any more",
            Self::OutboxFull => "too many reports wait to go home",
            Self::TooLarge => "over a limit of devices",
        })
    }
}

impl core::error::Error for Error {}

impl From<Fault> for Error {
    fn from(_: Fault) -> Self {
        Self::Flash
    }
}

impl From<Worn> for Error {
    fn from(_: Worn) -> Self {
        Self::Worn
    }
}

/// Why a device does not open. It may go on running what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The layout is not one for this flash.
    Layout(LayoutFault),
    /// The flash cannot be read.
    Flash,
    /// It was never made a device of a fleet.
    Unprovisioned,
    /// It has a key and no journal: it does not know which commands it has seen, and must be enrolled anew.
    Lost,
    /// Written by a newer program.
    Newer,
    /// Made for another board than this firmware's.
    Board(Board),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(fault) => fault.fmt(f),
            Self::Flash => f.write_str("the flash cannot be read"),
            Self::Unprovisioned => f.write_str("not a device of any fleet yet"),
            Self::Lost => f.write_str("the journal is lost: enrol this device anew"),
            Self::Newer => f.write_str("what is on the flash was written by a newer program"),
            Self::Board(board) => write!(f, "made for the board {}", board.0.escape_ascii()),
        }
    }
}

impl core::error::Error for OpenError {}

/// What makes a device one of a fleet.
pub struct Provision<'a> {
    /// Seed of its Ed25519 key, from a true source of randomness.
    pub seed: [u8; 32],
    /// The fleet's root key.
    pub root_key: [u8; 32],
    /// The fleet's keys under that root.
    pub trust: &'a Signed,
    /// The hardware.
    pub board: Board,
    /// Version of the image that runs: what is installed later has to be newer.
    pub version: u64,
    /// The slot that it runs from.
    pub running: Slot,
    /// What time it is, or the latest that it is known to have been: nothing that expired before is obeyed.
    pub now: Timestamp,
}

/// See the crate. One at a time owns the flash.
pub struct Device<F> {
    pub(crate) store: Store<F>,
    pub(crate) key: SigningKey,
    pub(crate) me: AgentId,
    root_key: [u8; 32],
    pub(crate) board: Board,
    /// The block that is being received.
    pub(crate) incoming: Option<Incoming>,
}

impl<F: NorFlash> Device<F> {
    /// Makes a device: forgets all that was on the flash but what is in the slots, then writes who it is.
    ///
    /// Cut off anywhere, it is unprovisioned, and this is to be called again.
    ///
    /// # Errors
    /// A layout that does not fit, trust that is not of this root or too large (`Err(OpenError::Unprovisioned)`), flash
    /// that does not hold.
    pub fn provision(flash: F, layout: Layout, as_whom: &Provision<'_>) -> Result<Self, OpenError> {
        layout.check(&flash).map_err(OpenError::Layout)?;
        let mut medium = Medium::new(flash);
        let bundle = TrustBundle::open(as_whom.trust, &as_whom.root_key);
        let trust = bundle.ok().and_then(|bundle| Trust::of(&bundle)).filter(|trust| trust.version != 0);
        let trust = trust.ok_or(OpenError::Unprovisioned)?;
        identity::clear(&mut medium, &layout).map_err(|_| OpenError::Flash)?;
        let mut core =
            Core { active: as_whom.running, time: as_whom.now, trust: trust.version, ..Core::new() };
        if as_whom.running == Slot::B {
            core.slots.swap(0, 1);
        }
        core.slots[as_whom.running.index()].version = as_whom.version;
        let mut store = Store::format(medium, layout, core, trust).map_err(|Worn| OpenError::Flash)?;
        let identity = Identity { seed: as_whom.seed, root_key: as_whom.root_key, board: as_whom.board };
        identity::write(&mut store.medium, &layout, &identity).map_err(|_| OpenError::Flash)?;
        Ok(Self::of(store, &identity))
    }

    /// Opens the device that is on the flash; writes nothing. `board` is what this firmware was built for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(flash: F, layout: Layout, board: Board) -> Result<Self, OpenError> {
        layout.check(&flash).map_err(OpenError::Layout)?;
        let mut medium = Medium::new(flash);
        let identity = match identity::read(&mut medium, &layout).map_err(|_| OpenError::Flash)? {
            Found::Identity(identity) => identity,
            Found::Newer => return Err(OpenError::Newer),
            Found::Nothing => return Err(OpenError::Unprovisioned),
        };
        if identity.board != board {
            return Err(OpenError::Board(identity.board));
        }
        let store = Store::mount(medium, layout).map_err(|fault| match fault {
            MountFault::Unreadable => OpenError::Flash,
            MountFault::None => OpenError::Lost,
            MountFault::Newer => OpenError::Newer,
        })?;
        Ok(Self::of(store, &identity))
    }

    fn of(store: Store<F>, identity: &Identity) -> Self {
        let key = SigningKey::from_bytes(&identity.seed);
        let me = AgentId::of_key(&key.verifying_key().to_bytes());
        Self { store, key, me, root_key: identity.root_key, board: identity.board, incoming: None }
    }

    /// Gives the flash back.
    pub fn into_flash(self) -> F {
        self.store.medium.into_flash()
    }

    /// The flash, to look at.
    pub fn flash(&self) -> &F {
        self.store.medium.flash()
    }

    /// Who it is.
    pub fn id(&self) -> AgentId {
        self.me
    }

    /// Its key: for µTP2's handshake.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The fleet's root key.
    pub fn root_key(&self) -> &[u8; 32] {
        &self.root_key
    }

    /// The keys whose credentials count.
    pub fn credential_keys(&self) -> &[[u8; 32]] {
        self.store.trust().credential_keys()
    }

    /// Sequence of the last command that was taken.
    pub fn cursor(&self) -> u64 {
        self.store.core().cursor
    }

    /// The latest time that is known to have been, ms since 1970.
    pub fn known_time(&self) -> Timestamp {
        self.store.core().time
    }

    /// The slot that was confirmed last.
    pub fn active(&self) -> Slot {
        self.store.core().active
    }

    /// What the slot that is not active holds.
    pub fn spare(&self) -> SlotState {
        self.store.core().spare().state
    }

    /// Version of the image that was confirmed last.
    pub fn version(&self) -> u64 {
        let core = self.store.core();
        core.slot(core.active).version
    }

    /// Version of the trust that is held.
    pub fn trust_version(&self) -> u64 {
        self.store.core().trust
    }

    /// Remembers what time it is, so that after a start without a clock nothing that expired until now is obeyed. For a
    /// time that comes from somebody trusted; once an hour is often enough. An earlier one changes nothing.
    ///
    /// # Errors
    /// [`Error::Worn`].
    pub fn note_time(&mut self, now: Timestamp) -> Result<(), Error> {
        if now <= self.known_time() {
            return Ok(());
        }
        let core = Core { time: now, ..self.store.core().clone() };
        Ok(self.store.commit(core, &[])?)
    }

    /// Takes the fleet's newer keys; whether they were newer.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if there are more keys than a device takes, [`Error::Worn`]. A bundle that is not under the
    /// root key, and one that is not newer, are no error: anybody can send these.
    pub fn trust(&mut self, signed: &Signed) -> Result<bool, Error> {
        let Ok(bundle) = TrustBundle::open(signed, &self.root_key) else { return Ok(false) };
        if bundle.version <= self.trust_version() {
            return Ok(false);
        }
        let trust = Trust::of(&bundle).ok_or(Error::TooLarge)?;
        let core = Core { trust: trust.version, ..self.store.core().clone() };
        self.store.commit(core, &[Item::Trust(&trust)])?;
        Ok(true)
    }

    /// `now`, or the latest time that is known to have been if that is later or there is no clock.
    pub(crate) fn at_least(&self, now: Option<Timestamp>) -> Timestamp {
        now.unwrap_or_default().max(self.known_time())
    }
}
