//! What a running program may use. An interpreter has no place that says stop: a program may run without end, or
//! build without end inside one step. So everything that it goes through is metered here, steps and memory and stack,
//! and the way out is an unwinding of its thread, which no `try` in a program catches.
//!
//! A meter belongs to a thread: a program runs on a thread of its own, and its values never leave it.

use std::{
    cell::{Cell, RefCell},
    panic::resume_unwind,
};

use crate::call::Ctx;

/// Stack of the thread that a program runs on. Address space, not memory: what is not used is never there.
pub(super) const STACK_BYTES: usize = 64 << 20;
/// How much of it the interpreter may use; the rest is for taking apart what it built.
const STACK_BYTES_MAX: usize = STACK_BYTES / 2;
/// Steps between two looks at whether anybody still waits.
const STEPS_PER_LOOK: u32 = 1_024;

/// Why a program was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nobody waits, or the time is over.
    Cancelled,
    /// More memory than a call may take.
    Memory,
    /// More functions inside each other than a stack holds.
    Recursion,
    /// Arrays and objects nested too deep.
    Nesting,
}

struct Meter {
    ctx: RefCell<Option<Ctx>>,
    steps: Cell<u32>,
    bytes: Cell<usize>,
    bytes_max: Cell<usize>,
    stack_base: Cell<usize>,
}

thread_local! {
    static METER: Meter = const {
        Meter {
            ctx: RefCell::new(None),
            steps: Cell::new(0),
            bytes: Cell::new(0),
            bytes_max: Cell::new(usize::MAX),
            stack_base: Cell::new(0),
        }
    };
}

/// Starts the meter of this thread.
pub(super) fn start(ctx: &Ctx, bytes_max: usize) {
    METER.with(|meter| {
        meter.ctx.replace(Some(ctx.clone()));
        meter.bytes_max.set(bytes_max);
        meter.stack_base.set(stack_now());
    });
}

/// Ends the thread's program.
pub(super) fn stop(why: Stop) -> ! {
    resume_unwind(Box::new(why)) // unlike a panic it is no fault, so no hook hears of it
}

/// Counts one step: an operation on a value, or an item taken from a sequence.
#[inline]
pub(super) fn tick() {
    METER.with(|meter| {
        let steps = meter.steps.get().wrapping_add(1);
        meter.steps.set(steps);
        if steps.is_multiple_of(STEPS_PER_LOOK) && meter.ctx.borrow().as_ref().is_some_and(Ctx::is_cancelled) {
            stop(Stop::Cancelled);
        }
    });
}

/// Counts one step of the interpreter, which may be deep inside others.
#[inline]
pub(super) fn step() {
    let base = METER.with(|meter| meter.stack_base.get());
    if base != 0 && base.abs_diff(stack_now()) > STACK_BYTES_MAX {
        stop(Stop::Recursion);
    }
    tick();
}

/// About where the stack ends now.
#[inline(never)]
fn stack_now() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// Memory that is counted for as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Charge(usize);

impl Charge {
    pub(super) fn new(bytes: usize) -> Self {
        let mut charge = Self(0);
        charge.add(bytes);
        charge
    }

    /// Counts more. Stops the program when there is no more.
    #[inline]
    pub(super) fn add(&mut self, bytes: usize) {
        METER.with(|meter| {
            let sum = meter.bytes.get().saturating_add(bytes);
            if sum > meter.bytes_max.get() {
                stop(Stop::Memory);
            }
            meter.bytes.set(sum);
        });
        self.0 += bytes;
    }

    /// Counts less.
    pub(super) fn sub(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0);
        METER.with(|meter| meter.bytes.set(meter.bytes.get().saturating_sub(bytes)));
        self.0 -= bytes;
    }

    /// Counts `bytes` from now on, whatever it was.
    pub(super) fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.0) {
            Some(more) => self.add(more),
            None => self.sub(self.0 - bytes),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // At the thread's end the meter may be gone before the last value.
        let _ = METER.try_with(|meter| meter.bytes.set(meter.bytes.get().saturating_sub(self.0)));
    }
}

#[cfg(test)]
pub(super) fn bytes_now() -> usize {
    METER.with(|meter| meter.bytes.get())
}
