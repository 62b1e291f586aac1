//! Streams that no call owns: `subscriptions/listen`, the stream that a session's client opens with GET, and a stream
//! that a client comes back to. Here is what such a stream says next; how it reaches a socket is the front's business.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    call::{Caller, MayCall},
    changes::{Change, Changes, Lists, Subscription, Topic},
    mcp::{
        catalogue::Capabilities,
        code::Refusal,
        encode::{self, OwnedId},
        events::{EventLog, Read},
        live::{SUBSCRIBED_BYTES_MAX, SUBSCRIBED_MAX},
        session::Session,
    },
};

/// The members of a filter for lists, with the capability that each needs.
const LISTS: [(&str, &str, Lists); 3] = [
    ("toolsListChanged", "tools", Lists::TOOLS),
    ("promptsListChanged", "prompts", Lists::PROMPTS),
    ("resourcesListChanged", "resources", Lists::RESOURCES),
];

/// What a stream says next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The event's id, where the client can come back.
    pub(crate) id: Option<String>,
    pub(crate) json: Bytes,
}

/// A stream that no call owns.
#[derive(Debug)]
pub(crate) enum Feed {
    /// `subscriptions/listen`.
    Listen(Listen),
    /// A stream of a session.
    Session(SessionFeed),
    /// The rest of a stream of which nothing is left.
    Nothing,
}

/// A `subscriptions/listen` that runs.
#[derive(Debug)]
pub(crate) struct Listen {
    id: OwnedId,
    subscription: Subscription,
    /// The acknowledgement, until it is sent.
    first: Option<Bytes>,
    /// By which tasks are judged; `None` where all may call all.
    may_call: Option<MayCall>,
}

impl Listen {
    /// Of a task nobody hears who may not call its tool any more.
    fn may_hear(&self, change: &Change) -> bool {
        match (change, &self.may_call) {
            (Change::Task { made_by: Some(tool), .. }, Some(MayCall(may_call))) => may_call(tool),
            _ => true,
        }
    }
}

/// A stream of a session that is being read.
#[derive(Debug)]
pub(crate) struct SessionFeed {
    session: Arc<Session>,
    log: Arc<EventLog>,
    reader: u64,
    /// The number of the last event that was read.
    after: u64,
}

impl Drop for SessionFeed {
    fn drop(&mut self) {
        self.log.detach(self.reader, Instant::now());
    }
}

impl Feed {
    /// A stream of the session; `after` is the last event of it that the client has.
    pub(crate) fn of_session(session: Arc<Session>, log: Arc<EventLog>, after: u64) -> Self {
        let reader = log.attach();
        Self::Session(SessionFeed { session, log, reader, after })
    }

    /// The next message; `None` at the end. Changes are only taken when `may_take`, so that they can be spaced.
    pub(crate) fn poll_next(&mut self, may_take: bool, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        match self {
            Self::Listen(listen) => {
                if let Some(json) = listen.first.take() {
                    return Poll::Ready(Some(Said { id: None, json }));
                }
                if !may_take {
                    return Poll::Pending;
                }
                let change = loop {
                    let change = ready!(listen.subscription.poll_take(cx));
                    if listen.may_hear(&change) {
                        break change;
                    }
                };
                Poll::Ready(Some(Said { id: None, json: encode::change(&change, Some(&listen.id)).into() }))
            }
            Self::Session(feed) => feed.poll_next(may_take, cx),
            Self::Nothing => Poll::Ready(None),
        }
    }

    /// Whether its messages are changes that may be spaced, and not a call's.
    pub(crate) fn is_of_changes(&self) -> bool {
        match self {
            Self::Listen(_) => true,
            Self::Session(feed) => feed.log.is_standalone(),
            Self::Nothing => false,
        }
    }

    /// The request that opened it and is answered at its end.
    pub(crate) fn request_id(&self) -> Option<&OwnedId> {
        match self {
            Self::Listen(listen) => Some(&listen.id),
            Self::Session(_) | Self::Nothing => None,
        }
    }

    /// What is said at last when the server ends the stream.
    pub(crate) fn farewell(&self, encoder: &encode::Encoder) -> Option<Bytes> {
        match self {
            Self::Listen(listen) => Some(encoder.listen_ended(&listen.id)),
            Self::Session(_) | Self::Nothing => None,
        }
    }
}

impl SessionFeed {
    fn poll_next(&mut self, may_take: bool, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        loop {
            match self.log.poll_after(self.reader, self.after, cx) {
                Poll::Ready(Read::Event(number, json)) => {
                    self.after = number;
                    return Poll::Ready(Some(Said { id: Some(self.log.id(number)), json }));
                }
                Poll::Ready(Read::End | Read::Lost) => return Poll::Ready(None),
                Poll::Pending if !self.log.is_standalone() || !may_take => return Poll::Pending,
                Poll::Pending => {}
            }
            let change = ready!(self.session.live().subscription().poll_take(cx));
            self.log.push(encode::change(&change, None).into());
        }
    }
}

/// What a client may hear of, of what it asks for.
pub(crate) fn listen(
    id: OwnedId,
    params: Option<Value>,
    capabilities: &Capabilities,
    changes: &Changes,
    has_tasks: bool,
    (caller, may_call): (&Caller, Option<MayCall>),
) -> Result<Feed, Refusal> {
    let invalid = |message: &str| Refusal::invalid_params(false, message);
    let Some(Value::Object(filter)) = params.as_ref().and_then(|p| p.get("notifications")) else {
        return Err(invalid("params.notifications must be an object that says what to hear of"));
    };
    let mut accepted = Map::new();
    let mut lists = Lists::default();
    for (member, family, list) in LISTS {
        match filter.get(member) {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) if capabilities.has(family) => {
                accepted.insert(member.into(), true.into());
                lists = lists.union(list);
            }
            Some(Value::Bool(true)) => {} // not offered, so left out of what is acknowledged
            Some(_) => return Err(invalid(&format!("params.notifications.{member} must be true or false"))),
        }
    }
    let mut topics = Vec::new();
    let mut named = |member: &str, offered: bool, topic: &dyn Fn(Arc<str>) -> Topic| {
        let names = match filter.get(member) {
            None => return Ok(()),
            Some(Value::Array(names)) => names,
            Some(_) => return Err(invalid(&format!("params.notifications.{member} must be a list of texts"))),
        };
        if names.len() > SUBSCRIBED_MAX {
            let message =
                format!("params.notifications.{member} has {} entries; at most {SUBSCRIBED_MAX}", names.len());
            return Err(invalid(&message));
        }
        for name in names {
            let name = name
                .as_str()
                .ok_or_else(|| invalid(&format!("params.notifications.{member} has a value that is no text")))?;
            if name.len() > SUBSCRIBED_BYTES_MAX {
                return Err(invalid(&format!(
                    "params.notifications.{member} has a text of {} bytes; at most {SUBSCRIBED_BYTES_MAX}",
                    name.len()
                )));
            }
            if offered {
                topics.push(topic(name.into()));
            }
        }
        if offered {
            accepted.insert(member.into(), names.clone().into());
        }
        Ok(())
    };
    named("resourceSubscriptions", capabilities.has("resources"), &Topic::Resource)?;
    let owner: Arc<str> = caller.subject().into();
    named("taskIds", has_tasks, &|id| Topic::Task { owner: Arc::clone(&owner), id })?;
    // Before the acknowledgement is written, so that nothing after it is missed.
    let subscription = changes.subscribe(lists, topics);
    let first = encode::acknowledged(&id, accepted);
    Ok(Feed::Listen(Listen { id, subscription, first: Some(first), may_call }))
}

impl encode::Encoder {
    fn listen_ended(&self, id: &OwnedId) -> Bytes {
        let key = encode::SUBSCRIPTION_ID;
        let meta = Bytes::from(format!("\"{key}\":{}", id.as_id()));
        self.empty_with_meta(id.as_id(), meta).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hears_of_a_task_whose_tool_they_may_not_call() {
        let subscription = Changes::default().subscribe(Lists::default(), Vec::new());
        let may_call = Some(MayCall(Arc::new(|tool| tool == "mine")));
        let listen = Listen { id: OwnedId::Number(1), subscription, first: None, may_call };
        let task = |made_by: Option<&str>| Change::Task { members: Bytes::new(), made_by: made_by.map(Arc::from) };
        assert!(listen.may_hear(&task(Some("mine"))) && listen.may_hear(&task(None)));
        assert!(!listen.may_hear(&task(Some("theirs"))));
        let all = Listen { may_call: None, ..listen };
        assert!(all.may_hear(&task(Some("theirs"))));
    }
}
