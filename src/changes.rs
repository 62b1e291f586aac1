//! What changed, for those who asked to hear of it: lists, single resources, tasks. A [`Changes`] handle says it, an
//! inbox keeps it for one stream until the stream takes it. Many changes of one thing are one message: an inbox holds
//! what changed, not how often, so that it is bounded by what was asked for. How a message looks is `mcp`'s business.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Readers of one inbox.
const READERS_MAX: usize = 16;

/// Says to clients that something changed. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Counted twice, so that a thread can have a count of its own: see [`Changes::apart`].
    #[allow(clippy::redundant_allocation)]
    hub: Arc<Arc<Hub>>,
}

/// Lists that can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists(u8);

impl Lists {
    pub(crate) const TOOLS: Self = Self(1);
    pub(crate) const PROMPTS: Self = Self(2);
    pub(crate) const RESOURCES: Self = Self(4);
    pub(crate) const ALL: Self = Self(7);

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// As a number, for other instances.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// Those of a number that there are.
    pub(crate) const fn of_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One thing that can change and has a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// A resource, by its URI.
    Resource(Arc<str>),
    /// A task, by its id and its owner: who is not hears nothing of it.
    Task { owner: Arc<str>, id: Arc<str> },
}

/// Something to tell a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// One of the lists.
    List(Lists),
    /// A resource, by its URI.
    Resource(Arc<str>),
    /// A task: the members of its state.
    Task {
        members: Bytes,
        /// The tool whose call it is, where that is known.
        made_by: Option<Arc<str>>,
    },
}

/// What other instances are to hear of too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<'a> {
    Lists(Lists),
    Resource(&'a str),
}

type Tell = dyn Fn(Told<'_>) + Send + Sync;

#[derive(Default)]
struct Hub {
    /// Tells other instances, where there are some.
    others: OnceLock<Box<Tell>>,
    state: Mutex<State>,
    /// Moves when resources are asked about that were not, or are not any more.
    interest: watch::Sender<u64>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    inboxes: HashMap<u64, Arc<Inbox>>,
    by_topic: HashMap<Topic, Asked>,
    /// Resources that somebody wants to hear of, in the order in which they were asked for.
    watched: BTreeMap<u64, Arc<str>>,
}

/// Who wants to hear of one thing.
#[derive(Debug)]
struct Asked {
    /// The place of a resource among those that are watched.
    place: u64,
    /// The version of a task that was told last.
    told: Option<u64>,
    inboxes: Vec<u64>,
}

/// What changed and was not told yet, for one stream.
#[derive(Debug)]
struct Inbox {
    lists: Lists,
    pending: Mutex<Pending>,
}

/// The newest state of a task that was not told yet.
#[derive(Debug)]
struct TaskNews {
    version: u64,
    members: Bytes,
    made_by: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Pending {
    lists: Lists,
    resources: BTreeSet<Arc<str>>,
    /// By id.
    tasks: BTreeMap<Arc<str>, TaskNews>,
    /// Whose turn it is; see [`Pending::take`].
    turn: usize,
    /// The resource and the task that were told last: the next one is the one after it.
    last_resource: Option<Arc<str>>,
    last_task: Option<Arc<str>>,
    /// Who reads: the streams of one session share an inbox, and any of them may end.
    wakers: Vec<Waker>,
}

impl Changes {
    /// The same, with a count of clones that is not shared: for who clones it all the time, which threads that share a
    /// count do at each other's cost.
    pub(crate) fn apart(&self) -> Self {
        Self { hub: Arc::new(Arc::clone(&*self.hub)) }
    }

    /// The list of tools is another one.
    pub fn tools(&self) {
        self.lists(Lists::TOOLS);
    }

    /// The list of prompts is another one.
    pub fn prompts(&self) {
        self.lists(Lists::PROMPTS);
    }

    /// The list of resources is another one.
    pub fn resources(&self) {
        self.lists(Lists::RESOURCES);
    }

    /// The resource at `uri` says something else than before. Told to those who subscribed to it.
    pub fn resource(&self, uri: &str) {
        self.tell_others(Told::Resource(uri));
        self.heard_resource(uri);
    }

    fn lists(&self, lists: Lists) {
        self.tell_others(Told::Lists(lists));
        self.heard_lists(lists);
    }

    fn tell_others(&self, told: Told<'_>) {
        if let Some(tell) = self.hub.others.get() {
            tell(told);
        }
    }

    /// From here on `tell` is told of what this instance says has changed; what [`Changes::heard_lists`] and its like say
    /// is not told on. It must be short, and the first one stays.
    pub(crate) fn to_others(&self, tell: impl Fn(Told<'_>) + Send + Sync + 'static) {
        let _ = self.hub.others.set(Box::new(tell));
    }

    /// Another instance says that a resource has changed.
    pub(crate) fn heard_resource(&self, uri: &str) {
        let uri: Arc<str> = uri.into();
        self.topic(&Topic::Resource(Arc::clone(&uri)), |pending| {
            pending.resources.insert(Arc::clone(&uri));
        });
    }

    /// A task is in another state; `members` are those of its notification, and `made_by` the tool whose call it is. What is
    /// older than what was told is not told.
    pub(crate) fn task(&self, owner: &str, id: &str, version: u64, members: &Bytes, made_by: Option<&str>) {
        let id: Arc<str> = id.into();
        let topic = Topic::Task { owner: owner.into(), id: Arc::clone(&id) };
        {
            let mut state = self.hub.state.lock();
            let Some(asked) = state.by_topic.get_mut(&topic) else { return };
            if asked.told.is_some_and(|told| told >= version) {
                return;
            }
            asked.told = Some(version);
        }
        self.topic(&topic, |pending| {
            let told = || TaskNews { version, members: members.clone(), made_by: made_by.map(Arc::from) };
            let newest = pending.tasks.entry(Arc::clone(&id)).or_insert_with(told);
            if newest.version < version {
                *newest = told();
            }
        });
    }

    /// Another instance says that lists have changed.
    pub(crate) fn heard_lists(&self, list: Lists) {
        let inboxes: Vec<_> = {
            let state = self.hub.state.lock();
            state.inboxes.values().filter(|inbox| !inbox.lists.common(list).is_empty()).map(Arc::clone).collect()
        };
        for inbox in inboxes {
            inbox.note(|pending| pending.lists = pending.lists.union(list.common(inbox.lists)));
        }
    }

    /// Whether somebody here wants to hear of a task, and was not told of this version or a later one.
    pub(crate) fn is_task_behind(&self, owner: &str, id: &str, version: u64) -> bool {
        let topic = Topic::Task { owner: owner.into(), id: id.into() };
        let state = self.hub.state.lock();
        state.by_topic.get(&topic).is_some_and(|asked| asked.told.is_none_or(|told| told < version))
    }

    /// Tasks that somebody here wants to hear of, each with its owner; so many at most.
    pub(crate) fn watched_tasks(&self, max: usize) -> Vec<(Arc<str>, Arc<str>)> {
        let state = self.hub.state.lock();
        let tasks = state.by_topic.keys().filter_map(|topic| match topic {
            Topic::Task { owner, id } => Some((Arc::clone(owner), Arc::clone(id))),
            Topic::Resource(_) => None,
        });
        tasks.take(max).collect()
    }

    fn topic(&self, topic: &Topic, note: impl Fn(&mut Pending)) {
        let inboxes: Vec<_> = {
            let state = self.hub.state.lock();
            let Some(asked) = state.by_topic.get(topic) else { return };
            asked.inboxes.iter().filter_map(|number| state.inboxes.get(number)).map(Arc::clone).collect()
        };
        for inbox in inboxes {
            inbox.note(&note);
        }
    }

    /// Moves when [`Changes::watched`] does.
    pub(crate) fn interest(&self) -> watch::Receiver<u64> {
        self.hub.interest.subscribe()
    }

    /// The resources that somebody wants to hear of, so many at most: those that were asked for first.
    pub(crate) fn watched(&self, max: usize) -> Vec<Arc<str>> {
        self.hub.state.lock().watched.values().take(max).map(Arc::clone).collect()
    }

    /// Opens an inbox. What changes from here on is kept for it.
    pub(crate) fn subscribe(&self, lists: Lists, topics: Vec<Topic>) -> Subscription {
        let inbox = Arc::new(Inbox { lists, pending: Mutex::default() });
        let mut state = self.hub.state.lock();
        let number = state.number();
        state.inboxes.insert(number, Arc::clone(&inbox));
        drop(state);
        let subscription = Subscription { hub: Arc::clone(&*self.hub), number, inbox, topics: Mutex::default() };
        for topic in topics {
            subscription.add(topic);
        }
        subscription
    }
}

impl Inbox {
    fn note(&self, note: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock();
        note(&mut pending);
        let wakers = std::mem::take(&mut pending.wakers);
        drop(pending); // waking may run code of the runtime
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// An inbox that is open. Its drop closes it.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    number: u64,
    inbox: Arc<Inbox>,
    topics: Mutex<BTreeSet<Topic>>,
}

impl Subscription {
    /// Hears of one more thing.
    pub(crate) fn add(&self, topic: Topic) {
        if !self.topics.lock().insert(topic.clone()) {
            return;
        }
        let is_resource = matches!(topic, Topic::Resource(_));
        let is_first = self.hub.state.lock().ask(topic, self.number);
        if is_resource && is_first {
            self.hub.move_interest();
        }
    }

    /// Hears of one thing less.
    pub(crate) fn remove(&self, topic: &Topic) {
        if self.topics.lock().remove(topic) {
            let is_last = self.hub.state.lock().forget(topic, self.number);
            if is_last && matches!(topic, Topic::Resource(_)) {
                self.hub.move_interest();
            }
        }
    }

    /// The resources among them.
    pub(crate) fn resources(&self) -> Vec<Arc<str>> {
        let topics = self.topics.lock();
        topics
            .iter()
            .filter_map(|topic| if let Topic::Resource(uri) = topic { Some(uri.clone()) } else { None })
            .collect()
    }

    /// Things heard of by name.
    pub(crate) fn topics(&self) -> usize {
        self.topics.lock().len()
    }

    /// The next change that was not taken yet.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Change> {
        let mut pending = self.inbox.pending.lock();
        if let Some(change) = pending.take() {
            return Poll::Ready(change);
        }
        if !pending.wakers.iter().any(|w| w.will_wake(cx.waker())) {
            if pending.wakers.len() >= READERS_MAX {
                pending.wakers.remove(0); // of a stream that has ended, since there are never so many
            }
            pending.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let topics = std::mem::take(&mut *self.topics.lock());
        let mut state = self.hub.state.lock();
        state.inboxes.remove(&self.number);
        let mut is_last = false;
        for topic in topics {
            is_last |= state.forget(&topic, self.number) && matches!(topic, Topic::Resource(_));
        }
        drop(state);
        if is_last {
            self.hub.move_interest();
        }
    }
}

impl Hub {
    fn move_interest(&self) {
        self.interest.send_modify(|version| *version += 1);
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// True when nobody has asked about it before.
    fn ask(&mut self, topic: Topic, inbox: u64) -> bool {
        if let Some(asked) = self.by_topic.get_mut(&topic) {
            asked.inboxes.push(inbox);
            return false;
        }
        let place = self.number();
        if let Topic::Resource(uri) = &topic {
            self.watched.insert(place, Arc::clone(uri));
        }
        self.by_topic.insert(topic, Asked { place, told: None, inboxes: vec![inbox] });
        true
    }

    /// True when nobody asks about it any more.
    fn forget(&mut self, topic: &Topic, inbox: u64) -> bool {
        let Some(asked) = self.by_topic.get_mut(topic) else { return false };
        asked.inboxes.retain(|n| *n != inbox);
        if !asked.inboxes.is_empty() {
            return false;
        }
        self.watched.remove(&asked.place);
        self.by_topic.remove(topic);
        true
    }
}

impl Pending {
    /// Kinds of changes: the three lists, resources, tasks.
    const KINDS: usize = 5;

    /// The next to tell. The kinds take turns, and so do the resources and the tasks, so that what changes all the time
    /// does not keep the others from being told where a reader takes less than there is.
    fn take(&mut self) -> Option<Change> {
        let turn = self.turn;
        (turn..turn + Self::KINDS).find_map(|kind| {
            let change = self.take_of(kind % Self::KINDS)?;
            self.turn = (kind + 1) % Self::KINDS;
            Some(change)
        })
    }

    fn take_of(&mut self, kind: usize) -> Option<Change> {
        match kind {
            0 => self.take_list(Lists::TOOLS),
            1 => self.take_list(Lists::PROMPTS),
            2 => self.take_list(Lists::RESOURCES),
            3 => {
                let next = self.resources.range::<Arc<str>, _>(after(self.last_resource.as_ref())).next();
                let uri = next.or_else(|| self.resources.first()).map(Arc::clone)?;
                self.resources.remove(&uri);
                self.last_resource = Some(Arc::clone(&uri));
                Some(Change::Resource(uri))
            }
            _ => {
                let next = self.tasks.range::<Arc<str>, _>(after(self.last_task.as_ref())).next();
                let (id, _) = next.or_else(|| self.tasks.first_key_value())?;
                let (id, TaskNews { members, made_by, .. }) = self.tasks.remove_entry(&Arc::clone(id))?;
                self.last_task = Some(id);
                Some(Change::Task { members, made_by })
            }
        }
    }

    fn take_list(&mut self, list: Lists) -> Option<Change> {
        if self.lists.common(list).is_empty() {
            return None;
        }
        self.lists = Lists(self.lists.0 & !list.0);
        Some(Change::List(list))
    }
}

/// What comes after `last`, or everything.
fn after(last: Option<&Arc<str>>) -> (Bound<&Arc<str>>, Bound<&Arc<str>>) {
    (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(subscription: &Subscription) -> Vec<Change> {
        let mut cx = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match subscription.poll_take(&mut cx) {
            Poll::Ready(change) => Some(change),
            Poll::Pending => None,
        })
        .collect()
    }

    #[test]
    fn each_hears_once_of_what_it_asked_for() {
        let changes = Changes::default();
        let tools = changes.subscribe(Lists::TOOLS, vec![Topic::Resource("a:1".into())]);
        let prompts = changes.subscribe(Lists::PROMPTS, vec![]);
        for _ in 0..1000 {
            changes.tools();
            changes.resource("a:1");
            changes.resource("a:2");
        }
        assert_eq!(taken(&tools), [Change::List(Lists::TOOLS), Change::Resource("a:1".into())]);
        assert_eq!(taken(&prompts), []);
        changes.task("o", "t", 1, &Bytes::from_static(b"x"), None);
        prompts.add(Topic::Task { owner: "o".into(), id: "t".into() });
        changes.task("other", "t", 9, &Bytes::from_static(b"not theirs"), None);
        changes.task("o", "t", 2, &Bytes::from_static(b"y"), None);
        changes.task("o", "t", 3, &Bytes::from_static(b"z"), None);
        changes.task("o", "t", 2, &Bytes::from_static(b"older, and late"), None);
        changes.task("o", "t", 3, &Bytes::from_static(b"told twice"), None);
        assert_eq!(
            taken(&prompts),
            [Change::Task { members: Bytes::from_static(b"z"), made_by: None }],
            "the newest state, once"
        );
        assert!(changes.is_task_behind("o", "t", 4) && !changes.is_task_behind("o", "t", 3));
        assert!(!changes.is_task_behind("other", "t", 4), "nobody asked");
        assert_eq!(changes.watched_tasks(9), [("o".into(), "t".into())]);
        changes.heard_lists(Lists::ALL);
        assert_eq!(taken(&prompts), [Change::List(Lists::PROMPTS)], "of all lists those that it asked for");
    }

    #[test]
    fn others_are_told_of_what_is_said_here_and_not_of_what_they_said() {
        let changes = Changes::default();
        let told = Arc::<Mutex<Vec<String>>>::default();
        let others = Arc::clone(&told);
        changes.to_others(move |told| others.lock().push(format!("{told:?}")));
        changes.apart().tools();
        changes.resource("a:1");
        changes.heard_lists(Lists::ALL);
        changes.heard_resource("a:1");
        assert_eq!(*told.lock(), ["Lists(Lists(1))", "Resource(\"a:1\")"]);
        assert_eq!(Lists::of_bits(0xff), Lists::ALL);
    }

    #[test]
    fn what_changes_all_the_time_keeps_nothing_from_being_told() {
        let changes = Changes::default();
        let uris = ["a:1", "a:2", "a:3"];
        let mut topics = Vec::from(uris.map(|uri| Topic::Resource(uri.into())));
        topics.extend(["t", "u"].map(|id| Topic::Task { owner: "o".into(), id: id.into() }));
        let reader = changes.subscribe(Lists::ALL, topics);
        let mut cx = Context::from_waker(Waker::noop());
        let mut told = Vec::new();
        for version in 0..18 {
            changes.tools();
            uris.iter().for_each(|uri| changes.resource(uri));
            ["t", "u"].iter().for_each(|id| changes.task("o", id, version, &Bytes::from_static(id.as_bytes()), None));
            // A reader that takes one at a time, slower than there are more.
            let Poll::Ready(change) = reader.poll_take(&mut cx) else { panic!("something has changed") };
            told.push(change);
        }
        let times = |change: &Change| told.iter().filter(|told| *told == change).count();
        for uri in uris {
            assert_eq!(times(&Change::Resource(uri.into())), 2, "{told:?}");
        }
        for id in ["t", "u"] {
            assert_eq!(
                times(&Change::Task { members: Bytes::from_static(id.as_bytes()), made_by: None }),
                3,
                "{told:?}"
            );
        }
        assert_eq!(times(&Change::List(Lists::TOOLS)), 6);
    }

    #[test]
    fn what_is_closed_leaves_nothing_behind() {
        let changes = Changes::default();
        let one = changes.subscribe(Lists::ALL, vec![Topic::Resource("a:1".into())]);
        let two = changes.subscribe(Lists::ALL, vec![Topic::Resource("a:1".into())]);
        one.remove(&Topic::Resource("a:1".into()));
        assert_eq!((one.topics(), two.topics()), (0, 1));
        drop((one, two));
        let state = changes.hub.state.lock();
        assert!(state.inboxes.is_empty() && state.by_topic.is_empty() && state.watched.is_empty());
    }

    #[test]
    fn of_too_many_resources_those_asked_for_first_are_watched() {
        let changes = Changes::default();
        let resource = |n: u32| Topic::Resource(format!("a:{n}").into());
        let first = changes.subscribe(Lists::ALL, vec![resource(900), resource(901)]);
        let second = changes.subscribe(Lists::ALL, (0..1000).map(resource).collect());
        assert_eq!(changes.watched(3), ["a:900".into(), "a:901".into(), Arc::from("a:0")]);
        second.remove(&resource(900));
        drop(first);
        assert_eq!(changes.watched(2), ["a:901".into(), Arc::from("a:0")], "still asked for by the second");
    }
}
