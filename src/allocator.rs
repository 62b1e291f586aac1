//! mimalloc as the allocator of the program, by its plain functions where they are enough.
//!
//! The wrapper that comes with the crate calls the functions for any alignment each time, which take twice the
//! instructions: the allocations of a modern call took 1,461 with it and take 745 without, of some 32,000 in all
//! (`cargo bench --bench instructions -- --rows modern-echo`, by the inclusive figures of the profile in
//! target/instructions).
//!
//! This is the only file with `unsafe`: an allocator cannot be had without. What it relies on is mimalloc's promise that
//! a block of at least 16 bytes is aligned to 16, and a smaller one to its size rounded down to a power of two.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout},
    ffi::c_void,
};

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};

/// mimalloc.
#[derive(Debug)]
pub(crate) struct Allocator;

/// What every block of at least this size is aligned to.
const ALIGNED_TO: usize = 16;

/// Whether a block of this size is aligned so by itself.
fn is_plain(align: usize, size: usize) -> bool {
    align <= ALIGNED_TO && align <= size
}

// SAFETY: each function hands on to mimalloc with the same size, and with the alignment unless every block of that size
// has it; memory comes from mimalloc alone and goes back to it, whichever function gave it out.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: no pointers are handed in.
        unsafe { if is_plain(align, size) { mi_malloc(size) } else { mi_malloc_aligned(size, align) } }.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: no pointers are handed in.
        unsafe { if is_plain(align, size) { mi_zalloc(size) } else { mi_zalloc_aligned(size, align) } }.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the block is one of ours, by the caller's promise.
        unsafe { mi_free(block.cast::<c_void>()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (block, align) = (block.cast::<c_void>(), layout.align());
        // SAFETY: the block is one of ours, by the caller's promise.
        unsafe { if is_plain(align, size) { mi_realloc(block, size) } else { mi_realloc_aligned(block, size, align) } }
            .cast()
    }
}
