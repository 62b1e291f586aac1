//! How many requests are inside, and whose. While there is room nobody is asked whose a request is; from half of it on
//! each caller may have its share of what there is, so that one who asks for everything leaves a place for the next.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::Share,
    front::{Connection, Front, pressure::Level, sender::Sender},
    mcp::code::Refusal,
};

/// `[fairness]`: who gets how much when there is not enough for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Weights of callers, each `ADDRESS=WEIGHT`; of those that are not named it is 1.
    pub weights: Vec<String>,
}

/// The greatest weight. More is no sharing.
const WEIGHT_MAX: u32 = 1000;

/// Weights by address.
#[derive(Debug, Default)]
pub(crate) struct Weights(HashMap<IpAddr, u32>);

impl Weights {
    /// Reads what was configured.
    ///
    /// # Errors
    /// The first that is wrong, and what would be right.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let mut weights = HashMap::new();
        for text in &config.weights {
            let read = text.rsplit_once('=').and_then(|(address, weight)| {
                let address: IpAddr = address.trim().parse().ok()?;
                let weight = weight.trim().parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight))?;
                Some((address.to_canonical(), weight))
            });
            let Some((address, weight)) = read else {
                return Err(format!(
                    "{text:?} is no weight of a caller; write its address and 1 to {WEIGHT_MAX}, such as \"10.0.0.5=4\""
                ));
            };
            weights.insert(address, weight);
        }
        Ok(Self(weights))
    }

    /// What an anonymous caller counts as. Addresses of one IPv6 network of a host (/64) are one caller.
    pub(crate) fn share_of(&self, address: IpAddr) -> Share {
        let address = address.to_canonical();
        let weight = self.0.get(&address).copied().unwrap_or(1);
        match address {
            IpAddr::V4(address) => Share::new(u64::from(u32::from(address)) | 1 << 32, weight),
            IpAddr::V6(address) => Share::new(network(address), weight),
        }
    }
}

/// The upper half of an address. None is a number that an IPv4 address has: those of `::/64` are this host's.
fn network(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, ..] = address.segments();
    [a, b, c, d].iter().fold(0, |all, part| all << 16 | u64::from(*part))
}

/// Counts requests being served, up to a limit. On cache lines of its own: every request writes here.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gate {
    inside: AtomicUsize,
    max: usize,
    /// From so many on, callers have shares.
    contended_at: usize,
    /// The weights of the callers who have something inside, added up.
    active: AtomicUsize,
    /// With how many connections each has.
    guests: Mutex<HashMap<Share, (usize, Arc<Guest>)>>,
}

/// A caller with open connections, or with requests behind a trusted proxy.
#[derive(Debug)]
struct Guest {
    share: Share,
    inside: AtomicUsize,
}

/// A connection's word of whose it is, or a request's that came through a proxy. The caller is forgotten with its last
/// one.
#[derive(Debug)]
pub(crate) struct Visit {
    front: Arc<Front>,
    guest: Arc<Guest>,
}

impl Visit {
    pub(crate) fn of(front: &Arc<Front>, address: IpAddr) -> Self {
        let share = front.fairness.share_of(address);
        let new = || Arc::new(Guest { share, inside: AtomicUsize::new(0) });
        let guest = {
            let mut guests = front.gate.guests.lock();
            let (connections, guest) = guests.entry(share).or_insert_with(|| (0, new()));
            *connections += 1;
            Arc::clone(guest)
        };
        Self { front: Arc::clone(front), guest }
    }

    pub(crate) fn share(&self) -> Share {
        self.guest.share
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut guests = self.front.gate.guests.lock();
        if let Entry::Occupied(mut guest) = guests.entry(self.guest.share) {
            guest.get_mut().0 -= 1;
            if guest.get().0 == 0 {
                guest.remove();
            }
        }
    }
}

/// A place inside the gate, free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    conn: Arc<Connection>,
    /// Of a sender that is not the connection's peer.
    visit: Option<Visit>,
}

impl Place {
    pub(super) fn front(&self) -> &Front {
        &self.conn.front
    }

    fn visit(&self) -> &Visit {
        self.visit.as_ref().unwrap_or(&self.conn.visit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gate = &self.conn.front.gate;
        gate.inside.fetch_sub(1, Ordering::AcqRel);
        let guest = &self.visit().guest;
        if guest.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            gate.active.fetch_sub(guest.share.weight() as usize, Ordering::AcqRel);
        }
    }
}

impl Gate {
    pub(crate) fn new(max: usize) -> Self {
        let guests = Mutex::default();
        Self { inside: AtomicUsize::new(0), max, contended_at: max / 2, active: AtomicUsize::new(0), guests }
    }

    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Callers with open connections.
    pub(crate) fn callers(&self) -> usize {
        self.guests.lock().len()
    }

    /// How many places a caller may have while `active` is the weight of all who have some. A tenth is nobody's, so
    /// that who comes new finds a place at once.
    fn places_of(&self, share: Share, active: usize) -> usize {
        let weight = share.weight() as usize;
        let shared = self.max - self.max.div_ceil(10).min(self.max / 2);
        (shared.saturating_mul(weight) / active.max(weight)).max(1)
    }

    /// Refuses when there is no place, without taking one.
    pub(super) fn check(&self, conn: &Connection, sender: &Sender) -> Result<(), Refusal> {
        let inside = self.inside();
        if conn.front.pressure.level() >= Level::Calls {
            return Err(self.refused(conn, "memory is short"));
        }
        if inside >= self.max {
            return Err(self.full(conn));
        }
        let guest = &sender.visit.as_ref().unwrap_or(&conn.visit).guest;
        if inside >= self.contended_at
            && guest.inside.load(Ordering::Relaxed) >= self.places_of(guest.share, self.active.load(Ordering::Relaxed))
        {
            return Err(self.over_share(conn, guest));
        }
        Ok(())
    }

    /// The sender has the place for as long as it lasts.
    pub(super) fn enter(conn: &Arc<Connection>, sender: &mut Sender) -> Result<Place, Refusal> {
        let gate = &conn.front.gate;
        let place = Place { conn: Arc::clone(conn), visit: sender.visit.take() };
        let guest = &place.visit().guest;
        let weight = guest.share.weight() as usize;
        // Counted from here on, also when it is refused at once.
        let before = gate.inside.fetch_add(1, Ordering::AcqRel);
        let own = guest.inside.fetch_add(1, Ordering::AcqRel);
        let active = match own {
            0 => gate.active.fetch_add(weight, Ordering::AcqRel) + weight,
            _ => gate.active.load(Ordering::Acquire),
        };
        if before >= gate.max {
            return Err(gate.full(conn));
        }
        if before >= gate.contended_at && own >= gate.places_of(guest.share, active) {
            return Err(gate.over_share(conn, guest));
        }
        Ok(place)
    }

    fn full(&self, conn: &Connection) -> Refusal {
        let message = format!("{} requests are being served, limits.concurrent_requests_max", self.max);
        self.refused(conn, &message)
    }

    fn over_share(&self, conn: &Connection, guest: &Guest) -> Refusal {
        let own = guest.inside.load(Ordering::Relaxed);
        let message = format!(
            "{own} requests of this caller are being served, its share of the {} of limits.concurrent_requests_max: \
             a tenth is left to callers who come new",
            self.max
        );
        self.refused(conn, &message)
    }

    fn refused(&self, conn: &Connection, why: &str) -> Refusal {
        Refusal::overloaded(conn.front.router.retry_after_s(), why)
    }
}

/// A place among the open streams.
pub(super) struct StreamPlace(Arc<Front>);

impl StreamPlace {
    pub(super) fn take(front: &Arc<Front>) -> Result<Self, Refusal> {
        let place = Self(Arc::clone(front)); // counted from here on, also when it is refused at once
        let open = front.streams.inside.fetch_add(1, Ordering::AcqRel);
        let message = if front.pressure.level() >= Level::Streams {
            "memory is short, so that no further streams are opened".to_owned()
        } else if open >= front.streams.max {
            format!("{} streams are open, as many as may be at once", front.streams.max)
        } else {
            return Ok(place);
        };
        Err(Refusal::overloaded(STREAM_RETRY_AFTER_S, message))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Streams stay open for long, so that there is little sense in trying again at once.
const STREAM_RETRY_AFTER_S: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one_caller() {
        let config = Weights::default();
        let share = |weights: &Weights, text: &str| weights.share_of(text.parse().expect("an address"));
        assert_eq!(share(&config, "10.0.0.1"), share(&config, "::ffff:10.0.0.1"));
        assert_ne!(share(&config, "10.0.0.1"), share(&config, "10.0.0.2"));
        assert_eq!(share(&config, "2001:db8::1"), share(&config, "2001:db8::2"));
        assert_ne!(share(&config, "2001:db8::1"), share(&config, "2001:db8:0:1::1"));
        assert_ne!(share(&config, "::1"), share(&config, "0.0.0.0"));
        let config = Weights::new(&Config { weights: vec!["10.0.0.1 = 3".into()] }).expect("weights");
        assert_eq!(share(&config, "10.0.0.1").weight(), 3);
        assert_eq!(share(&config, "10.0.0.2").weight(), 1);
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        for text in ["", "10.0.0.1", "10.0.0.1=0", "10.0.0.1=1001", "10.0.0.1=x", "host=1", "=1"] {
            let error = Weights::new(&Config { weights: vec![text.into()] }).expect_err(text);
            assert!(error.contains("10.0.0.5=4"), "{error}");
        }
    }

    #[test]
    fn places_go_by_weight_and_leave_some() {
        let gate = Gate::new(200);
        let (one, three) = (Share::new(1, 1), Share::new(2, 3));
        assert_eq!(gate.places_of(one, 1), 180);
        assert_eq!(gate.places_of(one, 2), 90);
        assert_eq!((gate.places_of(one, 4), gate.places_of(three, 4)), (45, 135));
        assert_eq!(gate.places_of(one, 1000), 1);
        assert_eq!(Gate::new(1).places_of(one, 1), 1);
        assert_eq!(Gate::new(2).places_of(one, 1), 1);
    }
}
