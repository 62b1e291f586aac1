//! Two instances in one process.
