//! Connections that nobody on the way can read or change, by rustls: the handshake, the certificate and its
//! replacement while connections are open, and who it is that showed a certificate. What is said over such a
//! connection is others' business.
//!
//! | file | what it is |
//! |---|---|
//! | `config` | `[tls]` |
//! | [`Acceptor`] | from a TCP connection to one that is secure; takes a new certificate when the files have changed |
//! | `load` | reads the files that `[tls]` names, and says what is wrong with them |
//! | [`Peer`] | what a client's certificate says, and the identity that it makes |
//! | [`Why`] | why a handshake failed: a word for the metrics, a sentence for the log |
//!
//! # Use
//!
//! - Once: [`Acceptor::new`], and each of [`Acceptor::warnings`] to the log.
//! - For each connection, in its own task: [`Acceptor::accept`]. What failed is closed, counted by [`Why::kind`], and
//!   logged seldom.
//! - Each [`Config::reload_every`], or when told: [`Acceptor::reload_if_changed`]; and when a file has changed, for each
//!   open connection with a client's certificate, [`Acceptor::takes`].
//! - For each request on a connection with a [`Peer`]: [`Peer::has_ended`], since a connection may outlive the
//!   certificate; and once for the connection, [`Peer::identity`].
//!
//! Sessions are resumed from a cache of fixed size, which is emptied with each new certificate. Data that comes before
//! the handshake is over ("early data") can be sent again by anybody who saw it, and is never taken. A client's
//! certificate is checked against its CA and its dates; lists of revoked certificates are not read, so let them be
//! valid for hours.

mod acceptor;
mod config;
mod load;
mod peer;
#[cfg(test)]
mod tests;
mod why;

pub use acceptor::{Accepted, Acceptor, Stream};
pub use config::{ClientCertificates, Config, Version};
pub use peer::Peer;
pub use why::Why;
