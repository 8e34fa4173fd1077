//! Bounded memory, for every target: one allocation beyond [`AT_ONCE`], or more than [`IN_ALL`] at a time, is a finding.
//! What C code allocates isn't seen here; libFuzzer's `-rss_limit_mb` bounds that.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes. Nothing that is fuzzed may ask for more than a small multiple of its input and of what its limits name.
const AT_ONCE: usize = 32 << 20;
/// Bytes.
const IN_ALL: usize = 128 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn more(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    if bytes > AT_ONCE || live > IN_ALL {
        // printing may allocate
        LIVE.store(0, Relaxed);
        eprintln!("an allocation of {bytes} bytes, {live} in all");
        std::process::abort();
    }
}

fn less(bytes: usize) {
    LIVE.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is; around it is only counting.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        less(layout.size());
        // SAFETY: the caller's
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: the caller's
        unsafe { System.dealloc(old, layout) }
    }
}
