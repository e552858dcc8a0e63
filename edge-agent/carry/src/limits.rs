//! Every limit of CARRYING.md §4, with its reason.

/// What a carrier keeps at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all orders.
    pub orders_len: usize,
    /// Bytes of all letters: a share of their own, so that neither way is blocked by the other.
    pub letters_len: usize,
    /// Bytes of one item.
    pub item_len: usize,
    /// Orders of one agent: those in the middle are worth nothing without the first.
    pub orders_of_one: usize,
    /// Letters of one agent: somebody's flood takes nobody else's room.
    pub letters_of_one: usize,
    /// Agents that a receipt is kept of.
    pub receipts: usize,
    /// Agents that are known to be thrown out.
    pub removals: usize,
    /// Milliseconds that a letter is carried: what nobody has fetched by then is not waited for.
    pub letter_age_ms: u64,
}

impl Limits {
    /// A microcontroller: what a few sectors of its flash hold.
    pub const DEVICE: Self = Self {
        orders_len: 16 << 10,
        letters_len: 16 << 10,
        item_len: 4 << 10,
        orders_of_one: 8,
        letters_of_one: 8,
        receipts: 64,
        removals: 64,
        letter_age_ms: 30 * 86_400_000,
    };

    /// An agent on a small box, or a gateway.
    pub const AGENT: Self = Self {
        orders_len: 8 << 20,
        letters_len: 8 << 20,
        item_len: 64 << 10,
        orders_of_one: 64,
        letters_of_one: 64,
        receipts: 10_000,
        removals: 10_000,
        letter_age_ms: 30 * 86_400_000,
    };
}

/// Agents in one [`crate::Summary`]: it is to fit into the beginning of a contact of seconds.
pub(crate) const SUMMARY_AGENTS: usize = 500;
