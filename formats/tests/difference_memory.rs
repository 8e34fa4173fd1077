//! Two NARs are compared in memory that grows neither with their files nor with their number (invariant 7). A test of
//! its own, since its allocator counts for the whole program.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{self, Cursor, Read},
};

use pushgate_formats::{
    difference::{Kind, Report, compare},
    nar::Writer,
};

/// Bytes: what all buffers take at their largest, with room for what the report holds.
const MOST_BYTES: isize = 1 << 20;

/// Counts what the thread of a test allocates, so that other tests don't disturb it.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn held(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

#[expect(unsafe_code, reason = "an allocator can't be written without; this one only counts")]
// SAFETY: every call goes to the system's allocator as it came
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        held(layout.size() as isize);
        // SAFETY: as the caller promises
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        held(-(layout.size() as isize));
        // SAFETY: as the caller promises
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A NAR of one file that is nowhere whole: zeros, and one other byte.
fn large(size: u64, at: u64) -> impl Read {
    let mut head = Vec::new();
    let mut push = |field: &[u8]| {
        head.extend_from_slice(&(field.len() as u64).to_le_bytes());
        head.extend_from_slice(field);
        head.resize(head.len().next_multiple_of(8), 0);
    };
    for field in ["nix-archive-1", "(", "type", "regular", "contents"] {
        push(field.as_bytes());
    }
    head.extend_from_slice(&size.to_le_bytes());
    let tail = [1u64.to_le_bytes(), *b")\0\0\0\0\0\0\0"].concat();
    let zeros = |count| io::repeat(0).take(count);
    let one = io::repeat(7).take(1);
    Cursor::new(head).chain(zeros(at)).chain(one).chain(zeros(size - at - 1)).chain(Cursor::new(tail))
}

/// Compares, and checks how much memory that takes.
fn bounded(claimed: impl Read, rebuilt: impl Read) -> Report {
    let before = HELD.get();
    MOST.set(before);
    let report = compare(claimed, rebuilt).unwrap();
    let most = MOST.get() - before;
    // two buffers are the least, else nothing was counted
    assert!((128 << 10..MOST_BYTES).contains(&most), "{most} bytes");
    report
}

#[test]
fn memory_does_not_grow_with_files() {
    let size = 200 << 20;
    let at = size - 1000;
    let found = bounded(large(size, at), large(size, at + 1));
    assert_eq!((found.files[0].first_offset, found.files[0].kind), (Some(at), Kind::Contents));
}

#[test]
fn memory_does_not_grow_with_entries() {
    let nar = |last: char| {
        let mut out = Writer::new(Vec::new());
        out.directory().unwrap();
        for n in 0..20_000 {
            out.entry(format!("{n:05}{last}").as_bytes()).unwrap();
            out.symlink(b"x").unwrap();
        }
        out.end().unwrap();
        out.finish().unwrap()
    };
    let found = bounded(nar('a').as_slice(), nar('b').as_slice());
    assert_eq!((found.counts.added, found.counts.removed), (20_000, 20_000));
}
