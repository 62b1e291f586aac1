//! What is said between a handler and its client while it runs: the request as the handler sees it, its questions, and the
//! answers. What carries it is `back`'s business.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use rmcp::{
    RoleServer,
    model::{ErrorData, MetaObject, RequestId, RequestMetaObject},
    service::RequestContext,
};
use serde_json::{Map, Value, json};

use super::{
    Answered,
    back::{Backs, For, Lent},
    wire::Question,
};
use crate::{
    call::{Ctx, Raw},
    error::CallError,
    input::{Answers, Exchange, Memory, Required, request_on_stream},
    outbox::Outbox,
};

/// Rounds of questions of one call in a session, where they are driven here.
pub(super) const ROUNDS_MAX: usize = 16;
pub(super) const MODERN_VERSION: &str = "2026-07-28";

/// A call's talk with its client while its handler runs.
pub(super) struct Talk {
    lent: Lent,
    raw: Raw,
    pub(super) is_modern: bool,
    /// The client of a session, which can be asked while the handler runs.
    pub(super) client: Option<(Arc<dyn Answers>, Arc<Outbox>)>,
}

type Asking<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Talk {
    pub(super) fn new(backs: &Arc<Backs>, ctx: &mut Ctx) -> Self {
        let raw = ctx.raw.take().map(|raw| *raw).unwrap_or_default();
        let owner = if raw.initialize.is_some() { For::Session } else { For::Request };
        let mut lent = backs.lend(owner, ctx.outbox.clone(), raw.meta.get("progressToken").cloned());
        if let Some(said) = &raw.initialize {
            lent.introduce(said);
        }
        let client = match (&ctx.exchange, &ctx.outbox) {
            (Exchange::Stream(client), Some(outbox)) => Some((Arc::clone(client), Arc::clone(outbox))),
            _ => None,
        };
        Self { lent, is_modern: raw.version == MODERN_VERSION, raw, client }
    }

    /// The handler's view of the request, the last time that it is asked for without a copy.
    pub(super) fn context(&mut self, is_last: bool) -> Option<RequestContext<RoleServer>> {
        let raw = if is_last { std::mem::take(&mut self.raw) } else { self.raw.clone() };
        context(&self.lent, raw)
    }

    /// Runs the handler, and brings its questions to the client and the answers back meanwhile.
    pub(super) async fn run<T>(&mut self, mut running: Answered<T>) -> Result<T, ErrorData> {
        self.lent.begun();
        let outcome = self.run_and_ask(&mut running).await;
        drop(running); // and with it the handler's copies of the peer, which would count as kept
        self.lent.done();
        outcome
    }

    async fn run_and_ask<T>(&self, running: &mut Answered<T>) -> Result<T, ErrorData> {
        let mut asking: Vec<Asking<'_>> = Vec::new();
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = running.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                let mut is_new = false;
                while let Poll::Ready(question) = self.lent.poll_question(cx) {
                    asking.push(Box::pin(self.ask(question)));
                    is_new = true;
                }
                let before = asking.len();
                asking.retain_mut(|question| question.as_mut().poll(cx).is_pending());
                if !is_new && asking.len() == before {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    async fn ask(&self, question: Question) {
        let answer = match &self.client {
            None => Err(json!({ "code": -32600, "message": "this client cannot be asked while its call runs" })),
            Some((client, outbox)) => {
                let mut params = question.params.clone();
                if let Some(Value::Object(meta)) = params.get_mut("_meta") {
                    meta.remove("progressToken"); // rmcp's own, which nobody reports to
                    if meta.is_empty()
                        && let Some(params) = params.as_object_mut()
                    {
                        params.remove("_meta");
                    }
                }
                let answered = request_on_stream(client.as_ref(), outbox, &question.method, params).await;
                answered.unwrap_or_else(|error| Err(json!({ "code": -32603, "message": error.to_string() })))
            }
        };
        self.lent.answer(&question, answer).await;
    }

    /// What a handler needs to know before it goes on: asked here in a session, whose revision has no rounds. Without
    /// one the client makes the call again with the answers.
    pub(super) async fn ask_all(&self, requests: Value, state: Option<&str>) -> Result<Map<String, Value>, CallError> {
        let requests = if let Value::Object(requests) = requests { requests } else { Map::new() };
        let Some((client, outbox)) = &self.client else {
            let memory = Memory { kept: state.map(Value::from), ..Memory::default() };
            return Err(CallError::InputRequired(Box::new(Required { requests, memory })));
        };
        let mut answers = Map::new();
        for (key, mut request) in requests {
            let params = request["params"].take();
            let method = request["method"].as_str().unwrap_or_default();
            let answer = request_on_stream(client.as_ref(), outbox, method, params).await?;
            answers.insert(key, answer.map_err(|e| CallError::tool(format!("the client refused: {}", e["message"])))?);
        }
        Ok(answers)
    }
}

/// What a client brings along to a call that is made again.
pub(super) fn said_before(ctx: &Ctx) -> (Map<String, Value>, Option<String>) {
    let Exchange::Rounds(rounds) = &ctx.exchange else { return (Map::new(), None) };
    (rounds.answers.clone(), rounds.kept.as_ref().and_then(Value::as_str).map(str::to_owned))
}

pub(super) fn context(lent: &Lent, raw: Raw) -> Option<RequestContext<RoleServer>> {
    let id = serde_json::from_value(raw.id).unwrap_or(RequestId::Number(0));
    let mut context = RequestContext::new(id, lent.peer()?);
    context.meta = RequestMetaObject(MetaObject(raw.meta));
    if let Some(parts) = raw.parts {
        context.extensions.insert(parts);
    }
    Some(context)
}
