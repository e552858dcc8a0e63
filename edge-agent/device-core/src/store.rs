//! Core state, trust, order and waiting reports, changed by transactions of one record each (DEVICE_FORMAT.md §3, §4).

use embedded_storage::nor_flash::NorFlash;

use crate::core_state::{CORE_LEN, Core};
use crate::journal::{Journal, MountFault, Part};
use crate::layout::Layout;
use crate::limits::{ORDER_LEN_MAX, REPORT_LEN_MAX, REPORTS_LEN_MAX, REPORTS_MAX};
use crate::medium::{Fault, Medium};
use crate::trust::{TRUST_LEN_MAX, Trust};

/// Kinds of items in a payload. From [`PASSED_OVER`] on they may be unknown.
const CORE: u8 = 1;
const TRUST: u8 = 2;
const ORDER: u8 = 3;
const REPORT: u8 = 4;
const PASSED_OVER: u8 = 128;

const ITEM_HEADER: usize = 4;
const NUMBER_LEN: usize = 8;

/// Items that one transaction brings besides the core state: an order, its answer and the end of the order before it.
const ITEMS_MAX: usize = 3;

/// What a transaction brings besides the core state.
#[derive(Clone, Copy)]
pub(crate) enum Item<'a> {
    Trust(&'a Trust),
    /// An order under its sequence.
    Order(u64, &'a [u8]),
    /// A report under its sequence.
    Report(u64, &'a [u8]),
}

/// Where bytes of an order or report lie, its number before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    number: u64,
    at: u32,
    len: u32,
}

#[derive(Clone, Debug, Default)]
struct Index {
    order: Option<Place>,
    reports: [Option<Place>; REPORTS_MAX],
}

impl Index {
    fn report(&self, number: u64) -> Option<Place> {
        self.reports.iter().flatten().find(|place| place.number == number).copied()
    }

    /// Forgets what the core state does not count among the living.
    fn prune(&mut self, core: &Core) {
        for report in &mut self.reports {
            if report.is_some_and(|place| !(core.stored + 1..=core.made).contains(&place.number)) {
                *report = None;
            }
        }
        if self.order.is_some_and(|place| place.number != core.order) {
            self.order = None;
        }
    }

    fn add_report(&mut self, place: Place) {
        let same = self.reports.iter().position(|r| r.is_some_and(|r| r.number == place.number));
        let free = || self.reports.iter().position(Option::is_none);
        if let Some(free) = same.or_else(free) {
            self.reports[free] = Some(place);
        }
    }
}

/// No transaction can be written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worn;

pub(crate) struct Store<F> {
    pub(crate) medium: Medium<F>,
    pub(crate) layout: Layout,
    journal: Journal,
    core: Core,
    trust: Trust,
    index: Index,
}

impl<F: NorFlash> Store<F> {
    /// Reads what is there; writes nothing.
    pub(crate) fn mount(mut medium: Medium<F>, layout: Layout) -> Result<Self, MountFault> {
        let (mut core, mut trust, mut index) = (None, Trust::default(), Index::default());
        let journal = Journal::mount(
            &mut medium,
            layout.journal,
            layout.segment_len,
            |medium, at, len| -> Result<(), MountFault> {
                let mut end = 0;
                while end < len {
                    let mut header = [0; ITEM_HEADER];
                    medium.read(at + end, &mut header)?;
                    let [kind, _, low, high] = header;
                    let (body, size) =
                        (at + end + ITEM_HEADER as u32, u32::from(u16::from_le_bytes([low, high])));
                    end += ITEM_HEADER as u32 + size;
                    // Its check held: what does not fit was not written by this program.
                    if end > len {
                        return Err(MountFault::Newer);
                    }
                    read_item(medium, kind, body, size, &mut core, &mut trust, &mut index)?;
                }
                if let Some(core) = &core {
                    index.prune(core);
                }
                Ok(())
            },
        )?;
        let core = core.ok_or(MountFault::None)?;
        if trust.version != core.trust {
            trust = Trust::default();
        }
        Ok(Self { medium, layout, journal, core, trust, index })
    }

    /// Begins anew, with nothing of what was there before.
    pub(crate) fn format(
        mut medium: Medium<F>,
        layout: Layout,
        core: Core,
        trust: Trust,
    ) -> Result<Self, Worn> {
        let segments = layout.journal.len / layout.segment_len;
        let mut sealed = None;
        for segment in 0..segments {
            let journal = Journal::first(&mut medium, layout.journal, layout.segment_len, segment);
            let (None, Ok(mut journal)) = (&sealed, journal) else { continue };
            let index = Index::default();
            let mut next = Index::default();
            if write_all(&mut medium, &mut journal, &core, &trust, &index, &mut next).is_ok() {
                sealed = Some(journal);
            }
        }
        let journal = sealed.ok_or(Worn)?;
        journal.seal(&mut medium).map_err(|_| Worn)?;
        Ok(Self { medium, layout, journal, core, trust, index: Index::default() })
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Number and bytes of the reports that wait and are there.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let reports = self.index.reports.iter().flatten();
        reports.fold((0, 0), |(count, bytes), place| (count + 1, bytes + place.len as usize))
    }

    /// Reads a waiting report; `None` if there is none of this number.
    pub(crate) fn report<'b>(
        &mut self,
        number: u64,
        into: &'b mut [u8; REPORT_LEN_MAX],
    ) -> Result<Option<&'b [u8]>, Fault> {
        let Some(place) = self.index.report(number) else { return Ok(None) };
        let into = &mut into[..place.len as usize];
        self.medium.read(place.at, into)?;
        Ok(Some(into))
    }

    /// The order that is being carried out, as it came.
    pub(crate) fn order(&mut self) -> Result<Option<alloc::vec::Vec<u8>>, Fault> {
        let Some(place) = self.index.order else { return Ok(None) };
        let mut bytes = alloc::vec![0; place.len as usize];
        self.medium.read(place.at, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// One transaction: when it returns, all of it holds for good.
    ///
    /// Reports must be within the limits, see [`REPORTS_LEN_MAX`].
    pub(crate) fn commit(&mut self, core: Core, items: &[Item<'_>]) -> Result<(), Worn> {
        debug_assert!(items.len() <= ITEMS_MAX && self.waiting().1 <= REPORTS_LEN_MAX);
        for _ in 0..=self.journal.segments() {
            let mut trust = self.trust.clone();
            let mut index = self.index.clone();
            if !self.journal.torn {
                let written = write(&mut self.medium, &mut self.journal, &core, items, &mut index);
                if written.is_ok() {
                    for item in items {
                        if let Item::Trust(new) = item {
                            trust = (*new).clone();
                        }
                    }
                    index.prune(&core);
                    (self.core, self.trust, self.index) = (core, trust, index);
                    return Ok(());
                }
            }
            self.roll()?;
        }
        Err(Worn)
    }

    /// Moves to another segment with all that is alive (§3.1), passing over those that do not hold (§7).
    fn roll(&mut self) -> Result<(), Worn> {
        for nth in 1..self.journal.segments() {
            let Ok(mut next) = self.journal.next(&mut self.medium, nth) else { continue };
            let mut index = Index::default();
            let written =
                write_all(&mut self.medium, &mut next, &self.core, &self.trust, &self.index, &mut index);
            if written.and_then(|()| next.seal(&mut self.medium)).is_ok() {
                (self.journal, self.index) = (next, index);
                return Ok(());
            }
        }
        // What was tried may have a header that holds after all: nothing may be added to the one before it.
        self.journal.torn = true;
        Err(Worn)
    }
}

fn read_item<F: NorFlash>(
    medium: &mut Medium<F>,
    kind: u8,
    at: u32,
    len: u32,
    core: &mut Option<Core>,
    trust: &mut Trust,
    index: &mut Index,
) -> Result<(), MountFault> {
    let numbered = |medium: &mut Medium<F>, most: usize| -> Result<Place, MountFault> {
        let mut number = [0; NUMBER_LEN];
        let bytes = len.checked_sub(NUMBER_LEN as u32).filter(|bytes| *bytes as usize <= most);
        let bytes = bytes.ok_or(MountFault::Newer)?;
        medium.read(at, &mut number)?;
        Ok(Place { number: u64::from_le_bytes(number), at: at + NUMBER_LEN as u32, len: bytes })
    };
    match kind {
        CORE => {
            let mut bytes = [0; CORE_LEN];
            if len as usize != CORE_LEN {
                return Err(MountFault::Newer);
            }
            medium.read(at, &mut bytes)?;
            *core = Some(Core::decode(&bytes).ok_or(MountFault::Newer)?);
        }
        TRUST => {
            let mut bytes = [0; TRUST_LEN_MAX];
            let bytes = bytes.get_mut(..len as usize).ok_or(MountFault::Newer)?;
            medium.read(at, bytes)?;
            *trust = Trust::decode(bytes).ok_or(MountFault::Newer)?;
        }
        ORDER => index.order = Some(numbered(medium, ORDER_LEN_MAX)?),
        REPORT => {
            let place = numbered(medium, REPORT_LEN_MAX)?;
            // What was alive until now may have been stored by the transaction that this is a part of.
            if let Some(core) = core {
                index.prune(core);
            }
            index.add_report(place);
        }
        PASSED_OVER.. => {}
        _ => return Err(MountFault::Newer),
    }
    Ok(())
}

/// Writes one record: the core state and some items.
fn write<F: NorFlash>(
    medium: &mut Medium<F>,
    journal: &mut Journal,
    core: &Core,
    items: &[Item<'_>],
    index: &mut Index,
) -> Result<(), Fault> {
    let core = core.encode();
    let core_header = item_header(CORE, CORE_LEN);
    let mut parts = [Part::Bytes(&[]); 2 + 3 * ITEMS_MAX];
    parts[0] = Part::Bytes(&core_header);
    parts[1] = Part::Bytes(&core);
    let mut heads = [([0; ITEM_HEADER], [0; NUMBER_LEN]); ITEMS_MAX];
    let mut trusts = [0; TRUST_LEN_MAX];
    let mut trust_len = 0;
    for (item, (header, number)) in items.iter().zip(&mut heads) {
        match item {
            Item::Trust(trust) => {
                trust_len = trust.encode(&mut trusts);
                *header = item_header(TRUST, trust_len);
            }
            Item::Order(sequence, bytes) => {
                *header = item_header(ORDER, NUMBER_LEN + bytes.len());
                *number = sequence.to_le_bytes();
            }
            Item::Report(sequence, bytes) => {
                *header = item_header(REPORT, NUMBER_LEN + bytes.len());
                *number = sequence.to_le_bytes();
            }
        }
    }
    let mut count = 2;
    for (item, (header, number)) in items.iter().zip(&heads) {
        let body: [Part<'_>; 2] = match item {
            Item::Trust(_) => [Part::Bytes(&[]), Part::Bytes(&trusts[..trust_len])],
            Item::Order(_, bytes) | Item::Report(_, bytes) => [Part::Bytes(number), Part::Bytes(bytes)],
        };
        parts[count] = Part::Bytes(header);
        parts[count + 1..count + 3].copy_from_slice(&body);
        count += 3;
    }
    let mut at = journal.append(medium, &parts[..count])? + (ITEM_HEADER + CORE_LEN) as u32;
    for item in items {
        let (number, bytes) = match item {
            Item::Trust(_) => {
                at += (ITEM_HEADER + trust_len) as u32;
                continue;
            }
            Item::Order(number, bytes) | Item::Report(number, bytes) => (*number, *bytes),
        };
        let place = Place { number, at: at + (ITEM_HEADER + NUMBER_LEN) as u32, len: bytes.len() as u32 };
        match item {
            Item::Order(..) => index.order = Some(place),
            _ => index.add_report(place),
        }
        at = place.at + place.len;
    }
    Ok(())
}

/// Writes all that is alive, in records of their own; `index` says where it is, `new` is filled with where it will be.
fn write_all<F: NorFlash>(
    medium: &mut Medium<F>,
    journal: &mut Journal,
    core: &Core,
    trust: &Trust,
    index: &Index,
    new: &mut Index,
) -> Result<(), Fault> {
    let trusted = [Item::Trust(trust)];
    let items = if core.trust != 0 { &trusted[..] } else { &[] };
    write(medium, journal, core, items, new)?;
    let mut reports = index.reports;
    reports.sort_unstable_by_key(|report| report.map(|place| place.number));
    let orders = index.order.iter().map(|place| (ORDER, place));
    let reports = reports.iter().flatten().map(|place| (REPORT, place));
    // Without the core state, which would not fit so many times.
    for (kind, place) in orders.chain(reports) {
        let number = place.number.to_le_bytes();
        let header = item_header(kind, NUMBER_LEN + place.len as usize);
        let bytes = Part::Flash { at: place.at, len: place.len };
        let at = journal.append(medium, &[Part::Bytes(&header), Part::Bytes(&number), bytes])?;
        let moved = Place { at: at + (ITEM_HEADER + NUMBER_LEN) as u32, ..*place };
        if kind == ORDER {
            new.order = Some(moved);
        } else {
            new.add_report(moved);
        }
    }
    Ok(())
}

fn item_header(kind: u8, len: usize) -> [u8; ITEM_HEADER] {
    let [low, high] = (len as u16).to_le_bytes();
    [kind, 0, low, high]
}
