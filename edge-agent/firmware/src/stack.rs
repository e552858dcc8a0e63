//! How deep the stack was: it is painted at the start, and what is not paint any more was used. And who called.

use core::ptr::{read_volatile, write_volatile};

const PAINT: u32 = 0x5aa5_c33c;

unsafe extern "C" {
    static __ebss: u32;
    static _stack_start: u32;
    static __stext: u32;
    static __etext: u32;
}

/// Paints all that is below the caller.
pub(crate) fn paint() {
    let mut at = &raw const __ebss as usize;
    // What this function itself needs is left out.
    let end = cortex_m::register::msp::read() as usize - 256;
    while at < end {
        // SAFETY: between what is static and the stack nothing is in use.
        unsafe { write_volatile(at as *mut u32, PAINT) }
        at += 4;
    }
}

/// Bytes that were in use at most since it was painted.
pub(crate) fn peak() -> usize {
    let mut at = &raw const __ebss as usize;
    let top = &raw const _stack_start as usize;
    // SAFETY: this is memory of the board.
    while at < top && unsafe { read_volatile(at as *const u32) } == PAINT {
        at += 4;
    }
    top - at
}

/// Addresses in the program from which functions may have been called, as the stack says, innermost first; some of them
/// were left there by others.
pub(crate) fn callers() -> impl Iterator<Item = u32> {
    let top = &raw const _stack_start as usize;
    let program = &raw const __stext as u32..&raw const __etext as u32;
    (cortex_m::register::msp::read() as usize..top).step_by(4).filter_map(move |at| {
        // SAFETY: this is memory of the board.
        let word = unsafe { read_volatile(at as *const u32) };
        // A return address has the bit of Thumb code; before it is the call, of two or four bytes.
        (word & 1 == 1 && program.contains(&word)).then_some(word - 3)
    })
}
