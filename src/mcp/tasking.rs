//! The tasks extension on the wire: a call that becomes a task is answered with the task and goes on by itself, and
//! `tasks/get`, `tasks/update` and `tasks/cancel` are what a client does with it. What a task is, is `tasks`' business.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    call::{Caller, Ctx, Kind, Lane, MayCall, Reply, Share},
    dispatch::{Answered, Run, Served, ServedTool, Snapshot, Work},
    error::CallError,
    identity::Identity,
    input::{Defers, Parks, Waiting},
    mcp::{
        again::{self, Asker},
        code::{self, Era},
        router::{Router, Step},
    },
    tasks::{Handle, Link, Record, StoreError, Tasks},
    telemetry::rarely::Rarely,
};

/// How much of a key is repeated in an answer.
const KEY_TOLD_CHARS_MAX: usize = 64;

/// When it is worth trying again to make a task, where there is no room for one.
const RETRY_AFTER_S: u32 = 30;
/// The same where the store cannot be reached: that can be over at any moment.
const STORE_RETRY_AFTER_S: u32 = 1;

/// What a client does with a task.
pub(crate) const METHODS: [&str; 3] = ["tasks/get", "tasks/update", "tasks/cancel"];

type Running = Pin<Box<dyn Future<Output = Result<Answered, CallError>> + Send>>;

/// A call that can become a task.
#[derive(Debug)]
pub(super) struct Deferral {
    tasks: Arc<Tasks>,
    caller: Caller,
    share: Share,
    tool: Arc<ServedTool>,
    /// The request, where another instance may have to run it again.
    request: OnceLock<Bytes>,
    begun: OnceLock<(Bytes, Link)>,
    /// Who runs it has this; it is given up with the end.
    handle: Mutex<Option<Handle>>,
}

impl Deferral {
    pub(super) fn new(tasks: Arc<Tasks>, caller: Caller, share: Share, tool: Arc<ServedTool>) -> Arc<Self> {
        Arc::new(Self {
            tasks,
            caller,
            share,
            tool,
            request: OnceLock::new(),
            begun: OnceLock::new(),
            handle: Mutex::default(),
        })
    }

    /// Keeps the request with the task that this may become, for another instance to run it again.
    pub(super) fn may_run_again(&self, body: &[u8]) {
        if self.tool.runs_again && self.tasks.is_shared() {
            let _ = self.request.set(Bytes::copy_from_slice(body));
        }
    }

    /// The call is a task already, whose instance has gone.
    pub(super) fn resume(&self, record: &Record, handle: Handle) {
        let _ = self.begun.set((record.created_members(), handle.link()));
        *self.handle.lock() = Some(handle);
    }

    /// Runs the call to its end, or to where it becomes a task: then it goes on by itself, and the answer is the task.
    pub(super) async fn run(&self, mut call: Running) -> Result<Answered, CallError> {
        let outcome = poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if self.begun.get().is_some() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        let Some((members, link)) = self.begun.get() else { return outcome.unwrap_or(Err(CallError::Internal)) };
        let handle = self.handle.lock().take().ok_or(CallError::Internal)?;
        match outcome {
            Some(outcome) => finish(handle, outcome).await, // it ended in the same breath
            None => {
                let link = link.clone();
                // The task of a task: it ends with the call, which has a time limit.
                tokio::spawn(async move {
                    let outcome = tokio::select! {
                        biased;
                        () = link.cancelled() => return,
                        outcome = call => outcome,
                    };
                    finish(handle, outcome).await;
                });
            }
        }
        let reply = Reply { kind: Kind::Task, ..Reply::of(members.clone()) };
        Ok(Answered { reply, served: Served::Fresh })
    }
}

/// After somebody has asked for a task, and was told of it: it is run again here when it was found without a process. Who
/// asked is its owner, and may call its tool today.
pub(super) fn look_after(router: &Arc<Router>, asker: Asker, params: &Value) {
    if let (Some(tasks), Some(id)) = (&router.tasks, params.get("taskId").and_then(Value::as_str))
        && !router.drain.is_started() // who stops leaves it to another
        && let Some(gone) = tasks.take_orphan(id)
    {
        // A task of its own, which nobody's leaving ends.
        tokio::spawn(run_again(Arc::clone(router), Arc::clone(tasks), asker, id.to_owned(), gone));
    }
}

async fn run_again(router: Arc<Router>, tasks: Arc<Tasks>, asker: Asker, id: String, gone: String) {
    // A hosted handler may have tasks of its own under any id, and answers for them: ours are their owner's alone.
    if !matches!(tasks.get(asker.caller.subject(), &id).await, Ok(Some(_))) {
        return;
    }
    let (record, handle, request) = match tasks.adopt(&id, &gone).await {
        Ok(Some(adopted)) => adopted,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, task = id, "a task is not taken over yet"),
    };
    tracing::info!(task = id, tool = record.made_by, "a task whose instance has gone is run again");
    if let Some(streams) = router.sessions.streams() {
        streams.counts().tasks.fetch_add(1, Relaxed);
    }
    let step = router.message(&asker.head_of_task(), None, &request, Instant::now());
    let (handle, why) = match step {
        Step::Call(call) => match call.resume_task(&record, handle) {
            Ok(call) => return drop(call.run(&router).await),
            Err(handle) => (handle, "its call is none that becomes a task".to_owned()),
        },
        Step::Done(answer) => (handle, again::why(&answer.payload.into_bytes())),
        Step::Feed(_) | Step::Batch(_) => (handle, "it is no call".to_owned()),
    };
    let message = "the instance that ran the task is gone; the task may have had effects, and is not run again";
    handle.fail(code::INTERNAL_ERROR, format!("{message}: {why}"), None).await;
}

/// Keeps how a task's call ended.
async fn finish(handle: Handle, outcome: Result<Answered, CallError>) {
    let reply = match outcome {
        Ok(answered) => Ok(answered.reply),
        Err(error) => match code::of_call(&error, Era::Modern, true) {
            None => return, // taken back
            Some(reply) => reply,
        },
    };
    match reply.map(|reply| RawValue::from_string(reply.to_json().to_string())) {
        Ok(Ok(result)) => handle.complete(result).await,
        Ok(Err(_)) => handle.fail(code::INTERNAL_ERROR, CallError::Internal.to_string(), None).await,
        Err(refusal) => handle.fail(refusal.code, refusal.message, refusal.data).await,
    }
}

impl Defers for Deferral {
    fn begin(&self) -> Waiting<'_, ()> {
        Box::pin(async {
            if self.begun.get().is_some() {
                return Ok(()); // an instance ran it for us that has gone, and the next one asks again
            }
            let counts_for = self.caller.counts_for(self.share);
            let made_by = Some(self.tool.tool.name().to_owned());
            let request = self.request.get().cloned();
            let created = self.tasks.create_again(self.caller.subject(), Some(counts_for), made_by, request).await;
            let (record, handle) = created.map_err(|error| match &error {
                StoreError::CallerFull => {
                    let ttl_s = self.tasks.config().ttl_ms.div_ceil(1000);
                    let why = format!("{error}, {ttl_s} s after each was made");
                    CallError::CallerLimit { why, retry_after_s: RETRY_AFTER_S }
                }
                _ => unavailable(&error),
            })?;
            let _ = self.begun.set((record.created_members(), handle.link()));
            *self.handle.lock() = Some(handle);
            Ok(())
        })
    }

    fn task(&self) -> Option<Arc<dyn Parks>> {
        self.begun.get().map(|(_, link)| Arc::new(link.clone()) as _)
    }

    fn is_cancelled(&self) -> bool {
        self.begun.get().is_some_and(|(_, link)| link.is_cancelled())
    }

    fn extra_time(&self) -> Duration {
        let timeout = Duration::from_millis(self.tasks.config().timeout_ms);
        if self.begun.get().is_some() { timeout } else { Duration::ZERO }
    }
}

impl Parks for Link {
    fn ask(&self, requests: Map<String, Value>) -> Waiting<'_, Map<String, Value>> {
        Box::pin(async move { Self::ask(self, requests).await.map_err(|_| CallError::Cancelled) })
    }
}

fn unavailable(error: &StoreError) -> CallError {
    // Clients poll, all of them and for as long as it lasts.
    static RARELY: Rarely = Rarely::new();
    let (refused, what) = match error {
        StoreError::Unavailable(_) => {
            (CallError::StoreAway { retry_after_s: STORE_RETRY_AFTER_S }, "a task could not be read or written")
        }
        StoreError::Full | StoreError::CallerFull => {
            (CallError::Overloaded { retry_after_s: RETRY_AFTER_S }, "a task could not be kept")
        }
    };
    if let Some(left_out) = RARELY.may(Instant::now()) {
        tracing::warn!(%error, left_out, "{what}");
    }
    refused
}

/// The methods, as work. A task that is not ours may be a hosted handler's.
pub(crate) fn methods(
    tasks: &Arc<Tasks>,
    hosted: &BTreeMap<&'static str, Arc<Work>>,
) -> BTreeMap<&'static str, Arc<Work>> {
    METHODS
        .into_iter()
        .map(|method| {
            let (tasks, hosted) = (Arc::clone(tasks), hosted.get(method).map(Arc::clone));
            let wants_raw = hosted.is_some();
            let run = Run::Async(Arc::new(move |params: Value, ctx: Ctx| {
                let (tasks, hosted) = (Arc::clone(&tasks), hosted.clone());
                Box::pin(async move {
                    match answer(&tasks, method, &ctx, &params).await? {
                        Some(reply) => Ok(reply),
                        None => match hosted.as_ref().map(|work| &work.run) {
                            Some(Run::Async(run)) => run(params, ctx).await,
                            _ => Err(CallError::InvalidParams("params.taskId names no task of this caller".into())),
                        },
                    }
                })
            }));
            (method, Arc::new(Work { name: method.into(), lane: Lane::Async, run, wants_raw, meter: None }))
        })
        .collect()
}

/// By which a task is judged at each look at it, since what its caller may can have changed. `None` where all may call
/// all.
pub(super) fn may_call(tools: &Arc<Snapshot>, who: Option<&Identity>) -> Option<MayCall> {
    let who = who.filter(|_| !tools.rights().is_open())?.clone();
    let tools = Arc::clone(tools);
    Some(MayCall(Arc::new(move |name| tools.for_caller(name, Some(&who)).is_some())))
}

/// `None` when there is no such task here, or it is of a tool that the caller may not call any more.
async fn answer(tasks: &Tasks, method: &str, ctx: &Ctx, params: &Value) -> Result<Option<Reply>, CallError> {
    let owner = ctx.caller().subject();
    let Some(id) = params.get("taskId").and_then(Value::as_str) else {
        return Err(CallError::InvalidParams("params.taskId is missing or not text".into()));
    };
    if let Some(MayCall(may_call)) = ctx.raw.as_ref().and_then(|raw| raw.may_call.as_ref()) {
        let record = tasks.get(owner, id).await.map_err(|error| unavailable(&error))?;
        if record.and_then(|record| record.made_by).is_some_and(|tool| !may_call(&tool)) {
            return Ok(None);
        }
    }
    let acknowledged = |record: Option<Record>| record.map(|_| Reply::of(Bytes::new()));
    match method {
        "tasks/get" => {
            let record = tasks.get(owner, id).await.map_err(|error| unavailable(&error))?;
            Ok(record.map(|record| Reply::of(record.detailed_members())))
        }
        "tasks/update" => {
            let answers = match params.get("inputResponses") {
                Some(Value::Object(answers)) => match answers.iter().find(|(_, answer)| !answer.is_object()) {
                    Some((key, _)) => {
                        let key: String = key.chars().take(KEY_TOLD_CHARS_MAX).collect();
                        let message =
                            format!("params.inputResponses.{key} must be an object: the result of what was asked");
                        return Err(CallError::InvalidParams(message));
                    }
                    None => answers.clone(),
                },
                None => Map::new(),
                Some(_) => return Err(CallError::InvalidParams("params.inputResponses must be an object".into())),
            };
            tasks.answer(owner, id, answers).await.map(acknowledged).map_err(|error| unavailable(&error))
        }
        _ => tasks.cancel(owner, id).await.map(acknowledged).map_err(|error| unavailable(&error)),
    }
}
