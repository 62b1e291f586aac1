//! What waits to be written to streams, on its way to Redis: of each stream in order, of many at once. A stream that is
//! not taken now is tried again by itself while the others go on: in a cluster one part of Redis may be away. What is said
//! on it meanwhile is put aside, within limits; of what is given up the end is owed, and tried for as long as it takes.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{
    leases::Counts,
    link::LinkError,
    streams::TOGETHER_MAX,
    writing::{OpenStream, What},
};

/// Bytes that wait to be written, and of these those of streams that were not taken at the first attempt.
pub(super) const WAITING_BYTES_MAX: usize = 48 << 20;
const LATE_BYTES_MAX: usize = 32 << 20;
/// Streams that are written at once for the first time, and once more.
const AT_ONCE: usize = 256;
const AGAIN_AT_ONCE: usize = 16;
/// Between two attempts to write while Redis does not take it, and how long that is tried, with the time that it waits
/// for its turn.
const AGAIN: Duration = Duration::from_millis(500);
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// Ends of streams that are owed, and the pause until they are tried again.
const OWED_MAX: usize = 4096;
const OWED_PAUSE: Duration = Duration::from_secs(1);
/// Ends that are tried at once, and those that were tried before and are once more, in one go: there may be thousands,
/// and each takes its time to fail, while others are waiting that can be written.
const PAID_AT_ONCE: usize = 64;
const PAID_AGAIN: usize = 64;

/// Where what waits goes.
pub(super) trait Sink {
    /// Writes what was said on one stream; false when that is not ours any more.
    fn append(&self, named: &OpenStream, what: &[What]) -> impl Future<Output = Result<bool, LinkError>> + Send;
}

/// Ends of streams that could not be kept: who reads elsewhere would wait for them for ever. Written when that is
/// possible again; then something is seen to be missing.
#[derive(Debug, Default)]
pub(super) struct Owed {
    ends: Mutex<Ends>,
    noted: Notify,
    /// Those that are being written.
    under_way: AtomicUsize,
}

type End = (Arc<OpenStream>, u64);

/// Those that were not tried yet, and those that were.
#[derive(Debug, Default)]
struct Ends {
    fresh: VecDeque<End>,
    tried: VecDeque<End>,
}

impl Ends {
    fn len(&self) -> usize {
        self.fresh.len() + self.tried.len()
    }

    /// What is tried next.
    fn next(&mut self) -> Vec<End> {
        let again = self.tried.len().min(PAID_AGAIN);
        self.fresh.drain(..).chain(self.tried.drain(..again)).collect()
    }
}

impl Owed {
    pub(super) fn note(&self, named: &Arc<OpenStream>, what: &What) {
        if let What::Ended(number, _) = what {
            self.put((Arc::clone(named), *number), |ends| &mut ends.fresh);
            self.noted.notify_one();
        }
    }

    fn put(&self, end: End, to: impl FnOnce(&mut Ends) -> &mut VecDeque<End>) {
        let mut ends = self.ends.lock();
        if ends.len() < OWED_MAX || ends.tried.pop_front().or_else(|| ends.fresh.pop_front()).is_some() {
            to(&mut ends).push_back(end);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.lock().len() == 0 && self.under_way.load(Relaxed) == 0
    }
}

/// Takes what waits to where it goes.
pub(super) struct Spool<S> {
    sink: S,
    waiting: Arc<AtomicUsize>,
    owed: Arc<Owed>,
    counts: Arc<Counts>,
    /// Places of those who are written for the first time, and once more.
    first: Semaphore,
    again: Semaphore,
    /// Bytes of streams that are late.
    late: AtomicUsize,
    /// Between two attempts, and how long there are any.
    again_pause: Duration,
    given_up_after: Duration,
}

/// A stream that is being written.
#[derive(Default)]
struct Busy {
    /// What was said on it since.
    aside: Vec<What>,
    /// What of that counts as late.
    late: usize,
}

/// A part of a stream that is written, or will not be.
struct Done {
    named: Arc<OpenStream>,
    /// It was given up; what follows would follow nothing.
    is_given_up: bool,
}

impl<S: Sink> Spool<S> {
    pub(super) fn new(sink: S, waiting: Arc<AtomicUsize>, owed: Arc<Owed>, counts: Arc<Counts>) -> Self {
        let (first, again) = (Semaphore::new(AT_ONCE), Semaphore::new(AGAIN_AT_ONCE));
        Self {
            sink,
            waiting,
            owed,
            counts,
            first,
            again,
            late: AtomicUsize::new(0),
            again_pause: AGAIN,
            given_up_after: GIVEN_UP_AFTER,
        }
    }

    /// Writes what waits, until nobody can speak any more and all of it is written.
    pub(super) async fn write(self, mut queue: mpsc::Receiver<(Arc<OpenStream>, What)>) {
        let (mut taken, mut is_closed) = (Vec::new(), false);
        let mut busy: HashMap<usize, Busy> = HashMap::new();
        let mut writing = FuturesUnordered::new();
        let mut paying = std::pin::pin!(self.pay_always());
        while !is_closed || !writing.is_empty() {
            tokio::select! {
                count = queue.recv_many(&mut taken, TOGETHER_MAX), if !is_closed => is_closed = count == 0,
                Some(Done { named, is_given_up }) = writing.next() => {
                    let mut next = busy.remove(&key(&named)).unwrap_or_default();
                    self.late.fetch_sub(std::mem::take(&mut next.late), Relaxed);
                    if is_given_up {
                        next.aside.drain(..).for_each(|what| self.drop_one(&named, &what));
                    }
                    if !next.aside.is_empty() {
                        let rest = next.aside.split_off(next.aside.len().min(TOGETHER_MAX));
                        writing.push(self.take(Arc::clone(&named), std::mem::replace(&mut next.aside, rest)));
                        busy.insert(key(&named), next);
                    }
                }
                never = &mut paying => match never {},
            }
            let mut fresh = Vec::new();
            for (named, what) in taken.drain(..) {
                let stream = busy.entry(key(&named)).or_insert_with(|| {
                    fresh.push(Arc::clone(&named));
                    Busy::default()
                });
                let late = if named.is_late() { what.size() } else { 0 };
                if late > 0 && self.late.load(Relaxed) + late > LATE_BYTES_MAX {
                    self.drop_one(&named, &what);
                    continue;
                }
                self.late.fetch_add(late, Relaxed);
                stream.late += late;
                stream.aside.push(what);
            }
            for named in fresh {
                let first = busy.get_mut(&key(&named)).map(|stream| std::mem::take(&mut stream.aside));
                writing.push(self.take(named, first.unwrap_or_default()));
            }
        }
    }

    /// Writes a part of a stream, or gives it up.
    async fn take(&self, named: Arc<OpenStream>, mut whats: Vec<What>) -> Done {
        let (size, began) = (whats.iter().map(What::size).sum(), Instant::now());
        let (mut is_lost, mut is_given_up) = (false, false);
        for attempt in 1.. {
            let places = if attempt == 1 { &self.first } else { &self.again };
            let left = self.given_up_after.saturating_sub(began.elapsed());
            let answer = match timeout(left, places.acquire()).await {
                Ok(_place) => self.sink.append(&named, &whats).await,
                Err(_) => Err(LinkError::Crowded), // so many others are tried again
            };
            let error = match answer {
                Ok(true) => break,
                Ok(false) => {
                    is_lost = attempt == 1; // else it may have been taken, and the answer lost
                    self.counts.lost.fetch_add(u64::from(named.lose()), Relaxed);
                    break;
                }
                Err(error) => error,
            };
            let is_for_now = !matches!(&error, LinkError::Refused(why) if !why.is_for_now());
            let has_room = attempt > 1 || self.late.fetch_add(size, Relaxed) + size <= LATE_BYTES_MAX;
            named.note_late(true);
            if !is_for_now || !has_room || began.elapsed() >= self.given_up_after {
                tracing::debug!(%error, "messages of a stream are not kept");
                whats.iter().for_each(|what| self.owed.note(&named, what));
                is_given_up = true;
                break;
            }
            sleep(self.again_pause).await;
        }
        if named.note_late(false) {
            self.late.fetch_sub(size, Relaxed);
        }
        self.waiting.fetch_sub(size, Relaxed);
        for what in &mut whats {
            match what {
                What::Opened(_, known) => drop(known.take().map(|known| known.send(()))),
                What::Ended(_, known) => drop(known.take().map(|known| known.send(!is_lost))),
                What::Said(..) => {}
            }
        }
        Done { named, is_given_up }
    }

    /// Gives up what follows on a stream.
    fn drop_one(&self, named: &Arc<OpenStream>, what: &What) {
        self.waiting.fetch_sub(what.size(), Relaxed);
        self.owed.note(named, what);
    }

    async fn pay_always(&self) -> Infallible {
        loop {
            if self.owed.is_empty() {
                self.owed.noted.notified().await;
            }
            sleep(OWED_PAUSE).await;
            while self.pay().await {}
        }
    }

    /// Writes ends that are owed, as far as they are taken; whether any is.
    async fn pay(&self) -> bool {
        let due = {
            let mut ends = self.owed.ends.lock();
            let due = ends.next();
            self.owed.under_way.store(due.len(), Relaxed);
            due
        };
        let paid = stream::iter(due).map(|(named, number)| async move {
            let end = What::Ended(number, None);
            match self.sink.append(&named, std::slice::from_ref(&end)).await {
                Ok(_) => return true,
                Err(LinkError::Refused(why)) if !why.is_for_now() => {} // it will never be taken
                Err(_) => self.owed.put((named, number), |ends| &mut ends.tried),
            }
            false
        });
        let paid = paid.buffer_unordered(PAID_AT_ONCE).filter(|is_paid| ready(*is_paid)).count().await;
        self.owed.under_way.store(0, Relaxed);
        paid > 0
    }
}

fn key(named: &Arc<OpenStream>) -> usize {
    Arc::as_ptr(named).addr()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::atomic::AtomicBool};

    use bytes::Bytes;
    use tokio::{sync::oneshot, task::yield_now};

    use super::*;
    use crate::cluster::{sessions::Hash, writing::Writer};

    /// For what is there at once.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Takes what it is given, but for streams whose part of Redis is away.
    #[derive(Debug, Default)]
    struct Parts {
        away: Mutex<HashSet<String>>,
        /// It takes its time to say so.
        slow: AtomicBool,
        attempts: AtomicUsize,
        /// All that there is another has taken over.
        lost: AtomicBool,
        /// The numbers of what was taken, of each stream; an end has those of its stream and 1000.
        taken: Mutex<HashMap<String, Vec<u64>>>,
    }

    impl Sink for Arc<Parts> {
        fn append(&self, named: &OpenStream, what: &[What]) -> impl Future<Output = Result<bool, LinkError>> + Send {
            let is_away = self.away.lock().contains(&named.name);
            if !is_away {
                let number = |what: &What| match what {
                    What::Opened(..) => 0,
                    What::Said(number, _) => *number,
                    What::Ended(number, _) => 1000 + number,
                };
                self.taken.lock().entry(named.name.clone()).or_default().extend(what.iter().map(number));
            }
            self.attempts.fetch_add(1, Relaxed);
            let (is_slow, is_lost) = (self.slow.load(Relaxed), self.lost.load(Relaxed));
            async move {
                if is_away && is_slow {
                    sleep(Duration::from_millis(25)).await;
                }
                if is_away { Err(LinkError::Unknown("no answer in time")) } else { Ok(!is_lost) }
            }
        }
    }

    struct Here {
        parts: Arc<Parts>,
        queue: mpsc::Sender<(Arc<OpenStream>, What)>,
        waiting: Arc<AtomicUsize>,
        owed: Arc<Owed>,
        counts: Arc<Counts>,
    }

    impl Here {
        fn start(given_up_after: Duration) -> Self {
            let (queue, receiver) = mpsc::channel(64 * 1024);
            let here = Self {
                parts: Arc::default(),
                queue,
                waiting: Arc::default(),
                owed: Arc::default(),
                counts: Arc::default(),
            };
            let (waiting, owed) = (Arc::clone(&here.waiting), Arc::clone(&here.owed));
            let spool = Spool::new(Arc::clone(&here.parts), waiting, owed, Arc::clone(&here.counts));
            let spool = Spool { again_pause: Duration::from_millis(5), given_up_after, ..spool };
            tokio::spawn(spool.write(receiver));
            here
        }

        fn is_away(&self, name: &str) {
            self.parts.away.lock().insert(name.into());
        }

        /// A stream, and what resolves when it is open.
        fn open(&self, name: &str) -> (Writer, oneshot::Receiver<()>) {
            let named = Arc::new(OpenStream::new(Hash::of([0; 16]), name.into(), String::new(), 0));
            let (queue, waiting, owed) = (self.queue.clone(), Arc::clone(&self.waiting), Arc::clone(&self.owed));
            let writer = Writer { named, queue, waiting, owed };
            let (known, opened) = oneshot::channel();
            writer.put(What::Opened(Bytes::new(), Some(known)));
            (writer, opened)
        }

        fn taken(&self, name: &str) -> Vec<u64> {
            self.parts.taken.lock().get(name).cloned().unwrap_or_default()
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_not_taken_holds_up_no_other() {
        let here = Here::start(Duration::MAX);
        here.is_away("a");
        let (a, mut not_yet) = here.open("a");
        (1..=200).for_each(|number| a.say(number, "x".into()));
        for _ in 0..3 {
            let (b, opened) = here.open("b");
            timeout(PATIENCE, opened).await.expect("in time").expect("open");
            b.say(1, "y".into());
            assert_eq!(b.end_known(1).await, Ok(true));
        }
        assert_eq!(here.taken("b"), [0, 1, 1001].repeat(3));
        assert!(not_yet.try_recv().is_err() && here.taken("a").is_empty());
        here.parts.away.lock().clear();
        let (end, ()) = tokio::join!(a.end_known(200), async { not_yet.await.expect("open") });
        let all: Vec<_> = (0..=200).chain([1200]).collect();
        assert_eq!((end, here.taken("a")), (Ok(true), all), "all of it, in order");
        assert_eq!(here.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_late_is_given_up_after_a_while_however_many_wait_for_their_turn() {
        const STREAMS: usize = 2000;
        let here = Here::start(Duration::from_millis(500));
        let streams: Vec<_> = (0..STREAMS).map(|n| format!("s{n}")).collect();
        streams.iter().for_each(|name| here.is_away(name));
        here.parts.slow.store(true, Relaxed);
        let opened: Vec<_> = streams.iter().map(|name| here.open(name)).collect();
        for (_, opened) in opened {
            opened.await.expect("known not to be open in time");
        }
        let attempts = here.parts.attempts.load(Relaxed);
        assert!((STREAMS..2 * STREAMS).contains(&attempts), "most had no second turn: {attempts}");
    }

    #[tokio::test]
    async fn an_end_that_can_be_written_waits_for_few_that_cannot() {
        let here = Here::start(GIVEN_UP_AFTER);
        here.parts.slow.store(true, Relaxed);
        let note = |name: &str| {
            let named = Arc::new(OpenStream::new(Hash::of([0; 16]), name.into(), String::new(), 0));
            here.owed.note(&named, &What::Ended(1, None));
        };
        let away: Vec<_> = (0..OWED_MAX).map(|n| format!("s{n}")).collect();
        away.iter().for_each(|name| here.is_away(name));
        away.iter().for_each(|name| note(name));
        let attempts = || here.parts.attempts.load(Relaxed);
        while attempts() < OWED_MAX + 2 * PAID_AGAIN {
            sleep(OWED_PAUSE / 10).await;
        }
        let before = attempts();
        note("b");
        while here.taken("b").is_empty() {
            sleep(OWED_PAUSE / 10).await;
        }
        assert!(attempts() < before + OWED_MAX / 4, "{before} {}", attempts());
        // One gave way, and the one that was taken is no longer under way in a moment.
        while here.owed.ends.lock().len() + here.owed.under_way.load(Relaxed) >= OWED_MAX {
            sleep(OWED_PAUSE / 10).await;
        }
        // And as soon as they can be, all are.
        here.parts.away.lock().clear();
        while !here.owed.is_empty() {
            sleep(OWED_PAUSE / 10).await;
        }
        assert_eq!(here.parts.taken.lock().len(), OWED_MAX);
    }

    #[tokio::test]
    async fn a_stream_is_lost_once() {
        let here = Here::start(GIVEN_UP_AFTER);
        here.parts.lost.store(true, Relaxed);
        let (a, opened) = here.open("a");
        opened.await.expect("known");
        for number in 1..=3 {
            a.say(number, "x".into());
            while here.waiting.load(Relaxed) > 0 {
                yield_now().await;
            }
        }
        assert_eq!((a.is_lost(), here.counts.lost.load(Relaxed)), (true, 1));
    }

    #[tokio::test]
    async fn what_is_late_is_bounded_and_what_is_given_up_ends() {
        let here = Here::start(Duration::from_secs(1));
        here.is_away("a");
        let (a, opened) = here.open("a");
        let large = Bytes::from(vec![0; 1 << 20]);
        for number in 1..=64 {
            a.say(number, large.clone());
            yield_now().await;
        }
        assert!(here.waiting.load(Relaxed) <= LATE_BYTES_MAX, "the others have the rest");
        a.end(64);
        opened.await.expect("known not to be open in time");
        while here.waiting.load(Relaxed) > 0 {
            sleep(OWED_PAUSE).await;
        }
        assert!(!here.owed.is_empty() && here.taken("a").is_empty());
        here.parts.away.lock().clear();
        while !here.owed.is_empty() {
            sleep(OWED_PAUSE).await;
        }
        assert_eq!(here.taken("a"), [1064], "its end says that all of it is missing");
    }
}
