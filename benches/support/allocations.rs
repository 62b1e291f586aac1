//! How many allocations a call takes: an allocator that counts when it is asked to, and the way to read the count.
//!
//! A server counts when `ALLOCATIONS_AT` names an address, where it then tells the count to whoever connects. Figures of
//! speed are of servers that do not count; what is left of it there is to look at one flag.
//!
//! Shared with the peers, which are a package of their own.
#![allow(unsafe_code)] // an allocator cannot be had without

use std::{
    alloc::{GlobalAlloc, Layout},
    env,
    io::{self, Write},
    net::TcpListener,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

/// Names the address.
pub(crate) const ASKED: &str = "ALLOCATIONS_AT";

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// An allocator that counts what it gives out, what is made larger included.
#[derive(Debug)]
pub(crate) struct Counting<A>(pub(crate) A);

fn note() {
    if COUNTS.load(Relaxed) {
        ALLOCATIONS.fetch_add(1, Relaxed);
    }
}

// SAFETY: every function hands on to the allocator inside with what it was given.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

/// Counts from now on, and tells it at the address that the environment names, if it names one.
pub(crate) fn count_if_asked() -> io::Result<()> {
    let Ok(address) = env::var(ASKED) else { return Ok(()) };
    let listener = TcpListener::bind(address)?;
    COUNTS.store(true, Relaxed);
    thread::Builder::new().name("allocations".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who does not take it sees that it is missing.
            let _ = (&stream).write_all(ALLOCATIONS.load(Relaxed).to_string().as_bytes());
        }
    })?;
    Ok(())
}
