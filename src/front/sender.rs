//! Whose a request is: the address that it counts for, with shares, rates, sessions and in the audit trail. It is the
//! connection's peer, unless that is a trusted proxy; then it is whom the proxy speaks for.

use std::{net::IpAddr, sync::Arc};

use crate::{
    call::{Caller, Share},
    front::{connection::Connection, gate::Visit, headers::Headers},
    identity::Identity,
    rate::{Who, real_ip},
};

/// Who sent a request.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) address: IpAddr,
    pub(crate) share: Share,
    /// Who it is, when that is asked, and once it is known.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Of one who has no connection of its own here.
    pub(super) visit: Option<Visit>,
}

impl Sender {
    pub(crate) fn of(conn: &Connection, headers: &Headers<'_>) -> Self {
        let peer = Self { address: conn.peer, share: conn.visit.share(), identity: None, visit: None };
        if conn.front.trusted.is_empty() {
            return peer;
        }
        let lines = headers.forwarded_for().into_iter();
        let address = real_ip::client_ip(conn.peer, lines, &conn.front.trusted);
        if address == conn.peer.to_canonical() {
            return peer;
        }
        let visit = Visit::of(&conn.front, address);
        Self { address, share: visit.share(), identity: None, visit: Some(visit) }
    }

    /// Whom rates count: an authenticated caller by name, and everybody else by address.
    pub(crate) fn who(&self) -> Who<'_> {
        match &self.identity {
            Some(identity) => Who::Caller(identity.principal()),
            None => Who::Address(self.address),
        }
    }

    /// To whom sessions, tasks and kept results belong.
    pub(crate) fn caller(&self) -> &Caller {
        const NOBODY: &Caller = &Caller::ANONYMOUS;
        self.identity.as_ref().map_or(NOBODY, |identity| identity.caller())
    }
}
