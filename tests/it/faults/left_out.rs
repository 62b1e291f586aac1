//! What of the table's groups is not run, and why. Every row is in [`ALL`]; one that is neither run nor here fails the
//! test.

/// The rows of the groups H (HTTP and connection) and J (JSON, JSON-RPC, protocol).
pub(super) const ALL: &str = "\
    H1 H2 H4 H5 H7 H8 H9 H10 H11 H13 H14 H15 H16 H17 H19 H20 H21 H24 H25 H26 H27 H28 H29 H30 H31 H32 H33 H34 H36 H37 H38 \
    J2 J3 J4 J5 J6 J7 J8 J9 J10 J13 J14 J15 J16 J17 J18 J19 J20 J21 J22 J23 J26 J28 J29 J30 J31 J32 J33 J34 J35 J36 J37 \
    J38 J39 J41 J42 J43 J44 J45 J46 J48 J51 J52";

/// Rows whose subject is not there, or that another module runs.
pub(super) const ROWS: &[(&str, &str)] = &[
    ("H2", "HTTP/2, on and off: see the module http2"),
    ("H29", "bodies are never decompressed: H28 shows that they are refused"),
    ("H34", "floods of frames: see the module http2, with a process for each"),
    ("J36", "there is no endpoint for the new revision alone: both eras are served at one"),
];

/// Parts of rows that are run otherwise.
pub(super) const PARTS: &[(&str, &str)] = &[
    ("H17", "10,000 connections are scaled to 50, and 10 s to half a second"),
    ("H20", "100 ms: the cancel is waited for, not timed, as in H21"),
    ("H36", "10,000 connections are scaled to 600, and 75 s to half a second"),
    ("H37", "forwarding upstream: there are no upstream servers"),
    ("J3", "standard input: see the module stdio"),
    ("J4", "standard input: see the module stdio"),
    ("J5", "comparing parsers: there is one"),
    ("J13", "batches in sessions of 2025-03-26: see the module streams"),
    ("J20", "one line on standard output: over HTTP only"),
    ("J21", "1,000 clients are scaled to 200"),
    ("J37", "responses that are awaited: see the module streams"),
    ("J41", "expired and replayed: nothing is timed, and single use is no setting; other callers: there is one"),
    ("J45", "forwarding: nothing is forwarded"),
    ("J46", "other tenants' tools: there are no tenants; metric labels: see the module engine"),
    ("J51", "that no file is opened: not traced"),
    ("J48", "10 ms: nothing is timed"),
];
