//! Sessions of several instances: each instance has copies of those that are used there, and Redis has the record of
//! all. A request in a session that is here asks Redis nothing; one that is not costs one round trip, once. What is
//! written meanwhile (last use, what was lost) is written from a task beside the requests.
//!
//! A copy is trusted while the others are heard. After a time in which they were not, all copies are looked up at once;
//! and while Redis is away the copies that are here go on, and a session that is not here is "later" and not "never",
//! since its client would give it up.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    call::{Caller, ClientCapabilities},
    cluster::link::LinkError,
    cluster::sessions::{Hash, News, RECORD_BYTES_MAX, Record, Records, There, Write, Written},
    mcp::{
        LEGACY_VERSIONS,
        again::Asker,
        code::Refusal,
        elsewhere,
        encode::OwnedId,
        head::Field,
        live::{EventId, asker},
        router::{Answer, Elsewhere, Router, Step, nothing_was_asked},
        session::{Full, Session, Start, is_id},
    },
};

/// Records that are looked at together.
const AT_ONCE: usize = 64;
/// Sessions whose end is remembered, or owed to Redis.
const ENDED_MAX: usize = 10_000;
/// What is missing in Redis so soon after it was written was lost there, and not ended.
const FRESH: Duration = Duration::from_secs(30);
/// The longest id of a call, or answer to a question, that is passed on.
const PASSED_BYTES_MAX: usize = 1 << 20;
/// For what is still to be written when this instance ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two attempts to write what Redis did not take.
const OWED_PAUSE: Duration = Duration::from_secs(1);
/// What a client is told to wait while Redis is away.
const RETRY_S: u32 = 1;

/// The sessions of this instance, as far as others know them.
#[derive(Debug)]
pub(crate) struct Shared {
    records: Records,
    router: Arc<Router>,
    known: Mutex<HashMap<Hash, Known>>,
    /// The last ones that ended, so that none comes back that was being looked up meanwhile.
    ended: Mutex<VecDeque<Hash>>,
    /// Ends that Redis has not heard of.
    owed: Mutex<VecDeque<Hash>>,
    /// Ends that Redis has heard of here, and when: one that fails over may lose the last ones.
    told: Mutex<VecDeque<(Instant, Hash)>>,
    /// Sessions that were opened while Redis could not be asked how they are called there.
    unnamed: Mutex<VecDeque<String>>,
    /// Something is to be written soon.
    is_due: AtomicBool,
}

/// One session.
#[derive(Clone, Debug)]
struct Known {
    id: Arc<str>,
    /// When its record was written here; `None` when it is to be.
    written: Option<Instant>,
    /// Its last use that the record knows of.
    used_s: u32,
    /// Redis has lost its record, as all others.
    is_lost: bool,
    /// It changed elsewhere, and could not be looked up.
    is_behind: bool,
}

/// What is known of the session that a request names, without asking.
#[derive(Debug)]
pub(crate) enum Named<'a> {
    /// It is here, or there is none of that name anywhere.
    Settled(Option<Arc<Session>>),
    /// Redis is to be asked.
    Unknown(&'a str),
}

impl Shared {
    /// Begins to listen, and to keep records, in tasks of the runtime that this is called in.
    pub(crate) fn start(records: Records, router: Arc<Router>, pause: Duration) -> Arc<Self> {
        let listener = records.listen();
        let shared = Arc::new(Self {
            records,
            router,
            known: Mutex::default(),
            ended: Mutex::default(),
            owed: Mutex::default(),
            told: Mutex::default(),
            unnamed: Mutex::default(),
            is_due: AtomicBool::new(false),
        });
        tokio::spawn(hear(Arc::downgrade(&shared), listener));
        tokio::spawn(keep(Arc::downgrade(&shared), pause));
        shared
    }

    /// The session that a request names, as far as that is known here. What cannot be an id is never asked for.
    pub(crate) fn named<'a>(&self, field: Field<'a>, is_modern: bool) -> Named<'a> {
        let Some(id) = field.text().filter(|id| !is_modern && is_id(id)) else { return Named::Settled(None) };
        match self.router.sessions.here(id, Instant::now()) {
            Some(session) => Named::Settled(Some(session)),
            None => Named::Unknown(id),
        }
    }

    /// Brings a session here that another instance has. None when there is none, or it is another caller's.
    ///
    /// # Errors
    /// Redis does not say, or there is no room.
    pub(crate) async fn bring(&self, id: &str, caller: &Caller, peer: IpAddr) -> Result<Option<Arc<Session>>, Refusal> {
        let looked_up = async {
            self.records.ready().await?;
            let Some(hash) = self.records.hash(id).filter(|hash| !self.has_ended(*hash)) else { return Ok(None) };
            let record = self.records.load(hash).await?;
            if record.is_none() && self.records.may_come_back().await? {
                return Err(LinkError::Odd("it has lost all sessions just now".into()));
            }
            Ok(record.map(|record| (hash, record)))
        };
        let found = looked_up.await.map_err(|error| {
            tracing::debug!(%error, "a session was not looked up");
            Refusal::overloaded(
                RETRY_S,
                "sessions of other instances cannot be looked up now; this one may be one of them",
            )
        })?;
        let Some((hash, record)) = found else { return Ok(None) };
        if self.records.owner(caller.subject()).is_none_or(|owner| owner != record.owner) {
            return Ok(None);
        }
        let Some(version) = LEGACY_VERSIONS.iter().position(|version| *version == record.version) else {
            return Ok(None); // of a later version of us
        };
        let start = Start {
            client: ClientCapabilities::of_bits(record.client),
            #[allow(clippy::cast_possible_truncation)] // there are four
            version: version as u8,
            initialize: record.initialize.clone().map(Arc::new),
        };
        let now = Instant::now();
        let session = self.router.sessions.adopt(id, start, caller.clone(), Some(peer), now).map_err(full)?;
        session.set_hash(hash);
        take_over(&session, &record);
        self.known.lock().entry(hash).or_insert_with(|| Known {
            id: id.into(),
            written: Some(now),
            used_s: 0,
            is_lost: false,
            is_behind: false,
        });
        // After it is known, so that an end is either heard with it here or found now.
        if self.has_ended(hash) {
            self.forget(hash);
            return Ok(None);
        }
        Ok(Some(session))
    }

    /// Brings the rest of a stream here that another instance began.
    ///
    /// # Errors
    /// Redis does not say, or there is no room.
    pub(crate) async fn bring_stream(
        &self,
        session: Option<&Arc<Session>>,
        last_event_id: Field<'_>,
        asker: Asker,
    ) -> Result<(), Refusal> {
        let session = session.filter(|session| *session.caller() == asker.caller);
        let (Some(session), Some(id)) = (session, last_event_id.text()) else { return Ok(()) };
        let Some(streams) = self.router.sessions.streams() else { return Ok(()) };
        elsewhere::bring(session, streams, &self.router, asker, id).await?;
        // From here on it is read here, and nowhere else.
        if let (Some(hash), Some(name)) = (session.hash(), EventId::parse(id).map(|id| id.name)) {
            match streams.turn(hash, name).await {
                Ok(turn) => session.live().note_turn(name, turn),
                Err(error) => tracing::debug!(%error, "a stream may be read at two instances"),
            }
        }
        Ok(())
    }

    /// Has Redis know what it does not know yet, before this instance ends; waits for a short time only.
    pub(crate) async fn flush(&self) {
        let done = async {
            self.look_at_all(false).await;
            let Some(streams) = self.router.sessions.streams() else { return };
            while !streams.is_idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            streams.presence().leave().await;
        };
        let _ = tokio::time::timeout(LAST_WORDS, done).await;
    }

    /// Whether an answer has to wait for others to know of something.
    pub(crate) fn is_unsettled(step: &Step, session: Option<&Arc<Session>>) -> bool {
        session.is_some_and(|session| session.is_changed())
            || matches!(step, Step::Done(answer) if answer.session_id.is_some() || answer.elsewhere.is_some())
    }

    /// Has the others know, before the client hears of it, what came of its message.
    pub(crate) async fn settle(&self, step: Step, session: Option<(&str, &Arc<Session>)>) -> Step {
        if let Some((id, session)) = session
            && session.take_change()
        {
            self.changed(id, session).await;
        }
        let Step::Done(mut answer) = step else { return step };
        if let Some(id) = &answer.session_id {
            self.opened(id).await;
        }
        let elsewhere = answer.elsewhere.take();
        match (elsewhere, session) {
            (Some(elsewhere), Some((id, session))) => Step::Done(match self.pass_on(*elsewhere, id, session).await {
                Ok(()) => answer,
                Err(refusal) => Answer::refused(None, &refusal),
            }),
            _ => Step::Done(answer),
        }
    }

    /// Writes the record of a session that was opened here. Where Redis cannot take it, it gets it later.
    async fn opened(&self, id: &str) {
        let known = self.records.ready().await;
        let (Ok(()), Some(hash)) = (known, self.records.hash(id)) else {
            let mut unnamed = self.unnamed.lock();
            if unnamed.len() < ENDED_MAX {
                unnamed.push_back(id.to_owned());
            }
            self.is_due.store(true, Relaxed);
            return;
        };
        if let Some(session) = self.router.sessions.here(id, Instant::now()) {
            session.set_hash(hash);
        }
        self.known
            .lock()
            .insert(hash, Known { id: id.into(), written: None, used_s: 0, is_lost: false, is_behind: false });
        self.write(hash, Write::New).await;
    }

    /// Writes a record, and notes whether it was.
    async fn write(&self, hash: Hash, how: Write) {
        let Some(id) = self.known.lock().get(&hash).map(|known| Arc::clone(&known.id)) else { return };
        let Some(session) = self.router.sessions.here(&id, Instant::now()) else { return };
        let Some(record) = self.record(&session) else { return };
        let used_s = session.last_used_s();
        match self.records.save(hash, record, how).await {
            Ok(written) => {
                if let Some(known) = self.known.lock().get_mut(&hash) {
                    (known.written, known.used_s, known.is_lost) = (Some(Instant::now()), used_s, false);
                }
                // Of several who write it again, the first one may not have been told what another was.
                if how == Write::Again && written == Written::No {
                    self.compare(hash, &id, &session).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a session is not written yet");
                self.is_due.store(true, Relaxed);
            }
        }
    }

    /// Has the others know what changed here, unless something else changed elsewhere since.
    async fn changed(&self, id: &str, session: &Session) {
        let (Some(hash), Some(record)) = (self.records.hash(id), self.record(session)) else { return };
        let told = async {
            match self.records.save(hash, record, Write::Known).await? {
                Written::Yes => self.records.tell_changed(hash).await,
                Written::No => {
                    self.is_behind(hash, true); // whether it was lost or has ended is found with the next look
                    Ok(())
                }
                Written::Older => {
                    if let Some(record) = self.records.load(hash).await? {
                        take_over(session, &record);
                    }
                    Ok(())
                }
            }
        };
        if let Err(error) = told.await {
            tracing::debug!(%error, "a change of a session is not written yet");
            session.owe_change();
            self.is_due.store(true, Relaxed);
        }
    }

    /// Brings a copy and its record together, whichever changed later: a change elsewhere may not have been heard of, and
    /// Redis may have lost one of here.
    async fn compare(&self, hash: Hash, id: &str, session: &Session) {
        let found = self.records.load(hash).await;
        self.is_behind(hash, found.is_err());
        match found {
            Ok(Some(record)) if record.changed_ms < session.changed_ms() => self.changed(id, session).await,
            Ok(Some(record)) => take_over(session, &record),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a change of a session is not looked up yet"),
        }
    }

    /// Notes whether a copy is still to be compared.
    fn is_behind(&self, hash: Hash, is_behind: bool) {
        if let Some(known) = self.known.lock().get_mut(&hash) {
            known.is_behind = is_behind;
        }
    }

    /// Ends a session everywhere, which has ended here.
    pub(crate) async fn ended(&self, field: Field<'_>) {
        let Some(id) = field.text() else { return };
        let Some(hash) = self.records.hash(id) else { return };
        self.known.lock().remove(&hash);
        self.note_end(hash);
        self.tell_end(hash).await;
    }

    async fn tell_end(&self, hash: Hash) {
        match self.records.end(hash).await {
            Ok(()) => {
                let mut told = self.told.lock();
                if told.len() >= ENDED_MAX || told.front().is_some_and(|(at, _)| at.elapsed() > FRESH) {
                    told.pop_front();
                }
                told.push_back((Instant::now(), hash));
            }
            Err(error) => {
                tracing::debug!(%error, "the end of a session is not told yet");
                let mut owed = self.owed.lock();
                owed.truncate(ENDED_MAX - 1);
                owed.push_back(hash);
                self.is_due.store(true, Relaxed);
            }
        }
    }

    fn note_end(&self, hash: Hash) {
        let mut ended = self.ended.lock();
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(hash);
    }

    fn has_ended(&self, hash: Hash) -> bool {
        self.ended.lock().contains(&hash)
    }

    /// Ends the copy here.
    fn forget(&self, hash: Hash) {
        let known = self.known.lock().remove(&hash);
        if let Some(known) = known {
            self.router.sessions.remove(&known.id);
        }
    }

    /// Has the right instance know what a client sent to this one.
    async fn pass_on(&self, elsewhere: Elsewhere, id: &str, session: &Session) -> Result<(), Refusal> {
        let away = |error| {
            tracing::debug!(%error, "a message was not passed on");
            Refusal::overloaded(RETRY_S, "this is for another instance, which cannot be reached now")
        };
        let Some(hash) = self.records.hash(id) else { return Ok(()) };
        match elsewhere {
            Elsewhere::Cancel(id) => {
                let call = id.to_value();
                if call.to_string().len() <= PASSED_BYTES_MAX {
                    self.records.tell_cancelled(hash, &call).await.map_err(away)?;
                    session.cancel(&id); // it may have been taken over here meanwhile
                }
                Ok(())
            }
            Elsewhere::Answer(question, answer) => {
                let size = answer.as_ref().unwrap_or_else(|error| error).to_string().len();
                if size > PASSED_BYTES_MAX {
                    let message =
                        format!("this is for another instance, and has {size} bytes; at most {PASSED_BYTES_MAX}");
                    return Err(Refusal { status: 413, ..Refusal::invalid_request(message) });
                }
                let tag = asker(question).ok_or_else(nothing_was_asked)?;
                match self.records.tell_answer(tag, hash, question, &answer).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(nothing_was_asked()),
                    Err(error) => Err(away(error)),
                }
            }
        }
    }

    /// What is to be kept of a session; no more than may be, however long its client's introduction was.
    fn record(&self, session: &Session) -> Option<Record> {
        let topics = session.live_if_any().map(|live| live.subscription().resources()).unwrap_or_default();
        let mut record = Record {
            changed_ms: session.changed_ms(),
            version: session.version().to_owned(),
            client: session.client.bits(),
            owner: self.records.owner(session.caller().subject())?,
            log_level: session.log_level().map(|level| level.rank()),
            initialize: session.initialize().map(|said| Value::clone(said)),
            topics: topics.iter().map(|uri| uri.as_ref().to_owned()).collect(),
            has_more: false,
            node: self.records.node().to_owned(),
        };
        let room = RECORD_BYTES_MAX / 2;
        if let Some(said) = &mut record.initialize {
            for member in ["_meta", "experimental"] {
                said.as_object_mut().and_then(|said| said.remove(member));
                said["capabilities"].as_object_mut().and_then(|capabilities| capabilities.remove(member));
            }
            if said.to_string().len() > room {
                let client = &said["clientInfo"];
                let short = |key: &str| client[key].as_str().unwrap_or_default().chars().take(32).collect::<String>();
                let client = serde_json::json!({ "name": short("name"), "version": short("version") });
                let version = said["protocolVersion"].clone();
                let names: serde_json::Map<_, _> = ClientCapabilities::NAMES
                    .iter()
                    .filter(|(_, one)| session.client.contains(*one))
                    .map(|(name, _)| ((*name).to_owned(), serde_json::json!({})))
                    .collect();
                *said = serde_json::json!({ "protocolVersion": version, "capabilities": names, "clientInfo": client });
            }
        }
        Some(record)
    }

    /// What another instance told.
    async fn heard(&self, news: News) {
        match news {
            News::Ended(hash) => {
                self.note_end(hash);
                self.forget(hash);
            }
            News::Changed(hash) => {
                let id = self.known.lock().get(&hash).map(|known| Arc::clone(&known.id));
                if let (Some(id), Some(session)) = (id, self.copy(hash)) {
                    self.compare(hash, &id, &session).await;
                }
            }
            News::Cancelled(hash, id) => {
                let id = match id {
                    Value::Number(number) => number.as_i64().map(OwnedId::Number),
                    text @ Value::String(_) => Some(OwnedId::Text(text.to_string().into())),
                    _ => None,
                };
                if let (Some(session), Some(id)) = (self.copy(hash), id) {
                    session.cancel(&id);
                }
            }
            News::Read(hash, turn, name) => {
                if let Some(session) = self.copy(hash)
                    && let Some(live) = session.live_if_any()
                {
                    live.cut(&name, turn);
                }
            }
            News::Answered(hash, question, answer) => {
                let taken = self
                    .copy(hash)
                    .is_some_and(|session| session.live_if_any().is_some_and(|live| live.answer(question, answer)));
                tracing::debug!(taken, "another instance passed an answer on");
            }
            News::Gap => {
                self.records.note_return();
                if let Some(streams) = self.router.sessions.streams() {
                    streams.presence().note_gap();
                }
                self.look_at_all(true).await;
            }
        }
    }

    fn copy(&self, hash: Hash) -> Option<Arc<Session>> {
        let id = self.known.lock().get(&hash).map(|known| Arc::clone(&known.id))?;
        self.router.sessions.here(&id, Instant::now())
    }

    /// Brings records and copies together: of all sessions here, or of those that were used since the last time.
    async fn look_at_all(&self, all: bool) {
        if all {
            // Until it has been done: Redis may go away again in the middle.
            self.known.lock().values_mut().for_each(|known| known.is_behind = true);
            let told = std::mem::take(&mut *self.told.lock());
            let recent = told.into_iter().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, hash)| hash);
            self.owed.lock().extend(recent);
        }
        if self.records.is_away() {
            return;
        }
        self.is_due.store(false, Relaxed);
        let owed = std::mem::take(&mut *self.owed.lock());
        for hash in owed {
            self.tell_end(hash).await;
        }
        let unnamed = std::mem::take(&mut *self.unnamed.lock());
        for id in unnamed {
            self.opened(&id).await;
        }
        let is_idle = self.known.lock().is_empty();
        if is_idle {
            return;
        }
        let Ok(is_other) = self.records.renew().await else {
            self.is_due.store(true, Relaxed);
            return;
        };
        let is_other = self.records.take_owed() || is_other;
        if is_other {
            tracing::info!("Redis has lost the sessions; those that are here are written again");
            self.name_again();
        }
        let now = Instant::now();
        let due: Vec<_> = self.known.lock().iter().map(|(hash, known)| (*hash, known.clone())).collect();
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(hash, known)| async move {
                let Some(session) = self.router.sessions.here(&known.id, now) else {
                    self.known.lock().remove(&hash); // its time here is over; the record expires by itself
                    return;
                };
                if known.written.is_none() {
                    return self.write(hash, Write::New).await;
                }
                if !known.is_lost && session.take_change() {
                    self.changed(&known.id, &session).await;
                }
                let is_used = session.is_busy() || session.last_used_s() != known.used_s;
                if known.is_behind || known.is_lost || is_used {
                    self.look_at(hash, &known, &session).await;
                }
            })
            .await;
    }

    /// Has the record of a session that is used live on, and ends the copy when there is no record any more.
    /// Where Redis has lost all, it is written again.
    async fn look_at(&self, hash: Hash, known: &Known, session: &Session) {
        let used_s = session.last_used_s();
        match self.records.touch(hash).await {
            Ok(There::Yes) => {
                if let Some(known) = self.known.lock().get_mut(&hash) {
                    (known.used_s, known.is_lost) = (used_s, false);
                }
                if known.is_behind {
                    self.compare(hash, &known.id, session).await;
                }
            }
            Ok(There::No) if known.is_lost || known.written.is_some_and(|at| at.elapsed() < FRESH) => {
                self.write(hash, Write::Again).await;
            }
            Ok(There::No | There::Ended) => self.forget(hash),
            Err(error) => tracing::debug!(%error, "a session's use is not noted"),
        }
    }

    /// After Redis began empty, perhaps with another key: all sessions get the names that they have now.
    fn name_again(&self) {
        let mut known = self.known.lock();
        let lost = |one: Known| Known { is_lost: true, ..one };
        let named = known.drain().filter_map(|(_, one)| Some((self.records.hash(&one.id)?, lost(one))));
        let named: HashMap<_, _> = named.collect();
        for (hash, one) in &named {
            if let Some(session) = self.router.sessions.here(&one.id, Instant::now()) {
                session.set_hash(*hash);
            }
        }
        *known = named;
    }
}

/// Takes over what a record says that can change, unless it changed here since.
fn take_over(session: &Session, record: &Record) {
    if !session.take_changed_ms(record.changed_ms) {
        return;
    }
    session.take_log_level(record.log_level);
    if record.topics.is_empty() && session.live_if_any().is_none() {
        return;
    }
    let live = session.live();
    for uri in live.subscription().resources() {
        if !record.topics.iter().any(|topic| **topic == *uri) {
            live.unsubscribe(&uri);
        }
    }
    for topic in &record.topics {
        live.subscribe(topic);
    }
}

fn full(full: Full) -> Refusal {
    match full {
        Full::Caller => Refusal::rate_limited(60, "this caller has as many sessions here as one may have"),
        Full::Server => Refusal::overloaded(RETRY_S, "this instance has as many sessions as it may have"),
    }
}

/// Hears what the others tell. Ends with the sessions.
async fn hear(shared: Weak<Shared>, mut listener: crate::cluster::sessions::Listener) {
    while let Some(news) = listener.next().await {
        let Some(shared) = shared.upgrade() else { return };
        shared.heard(news).await;
    }
}

/// Looks at what was used, again and again, and at all when Redis is back. Ends with the sessions.
async fn keep(shared: Weak<Shared>, pause: Duration) {
    let Some(mut state) = shared.upgrade().map(|shared| shared.records.watch()) else { return };
    let mut was_away = false;
    loop {
        let next = async {
            let began = Instant::now();
            while began.elapsed() < pause {
                tokio::time::sleep(pause.min(OWED_PAUSE)).await;
                if shared.upgrade().is_none_or(|shared| shared.is_due.load(Relaxed)) {
                    break;
                }
            }
        };
        let is_due = tokio::select! {
            () = next => true,
            changed = state.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let Some(shared) = shared.upgrade() else { return };
        let is_away = shared.records.is_away();
        let is_back = was_away && !is_away;
        was_away = is_away;
        if is_back {
            shared.records.note_return();
        }
        if is_due || is_back {
            shared.look_at_all(is_back).await;
        }
    }
}
