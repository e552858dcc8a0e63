//! What the programs of this board begin with: the heap, and what is said of a panic.

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicUsize, Ordering};

use cortex_m::peripheral::SCB;
use cortex_m_rt::{ExceptionFrame, exception};
use embedded_alloc::LlffHeap;

use crate::board::Console;
use crate::stack;

/// Bytes of the heap: a block that is on its way takes 32 KiB, all else 24 KiB as measured. The rest of the memory, 28 KiB,
/// is stack, of which 19 were in use at most.
const HEAP_LEN: usize = 68 * 1024;

/// A heap that knows how much of it was in use at most.
struct Heap {
    heap: LlffHeap,
    peak: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap { heap: LlffHeap::empty(), peak: AtomicUsize::new(0) };

// SAFETY: all is passed on to a heap that holds to the rules; what it gives and takes is only counted.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let given = unsafe { self.heap.alloc(layout) };
        self.peak.fetch_max(self.heap.used(), Ordering::Relaxed);
        given
    }

    unsafe fn dealloc(&self, given: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { self.heap.dealloc(given, layout) }
    }
}

/// Bytes of the heap that were in use at most.
pub(crate) fn heap_peak() -> usize {
    HEAP.peak.load(Ordering::Relaxed)
}

/// To be called first, and once.
pub(crate) fn start() {
    static mut MEMORY: [u8; HEAP_LEN] = [0; HEAP_LEN];
    // SAFETY: the only call, before anything is allocated, of memory that nothing else refers to.
    unsafe { HEAP.heap.init(&raw mut MEMORY as usize, HEAP_LEN) }
    Console::start();
    stack::paint();
}

/// Says something on the console; nobody may be listening.
#[macro_export]
macro_rules! say {
    ($($what:tt)*) => {
        let _ = writeln!($crate::board::Console, $($what)*);
    };
}

/// Says from where it was called, innermost first, for `llvm-addr2line`: texts and places of all panics would be a sixth
/// of the program.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    let _ = Console.write_str("PANIC");
    for address in stack::callers().take(16) {
        let _ = write!(Console, " {address:#x}");
    }
    say!("");
    SCB::sys_reset()
}

/// What the processor cannot do: an address where there is nothing, an instruction that is none.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    say!("PANIC fault at {:#x}", frame.pc());
    SCB::sys_reset()
}
