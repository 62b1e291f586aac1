//! With real Redis processes.
