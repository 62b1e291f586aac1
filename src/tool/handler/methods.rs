//! What handlers answer besides calls of tools: of several, the one that has what is asked for, and lists of what all of
//! them have.

use std::{cmp::Reverse, sync::Arc};

use rmcp::model::ErrorCode;
use serde_json::Value;

use super::{
    calls::{Calls, failed, reply_of, request_of},
    talk::{ROUNDS_MAX, Talk, said_before},
};
use crate::{
    call::{Ctx, Kind, Reply},
    error::CallError,
    tool::Outcome,
};

/// Answers a method by the first handler that can.
pub(super) async fn answer(handlers: &[Arc<Calls>], method: &'static str, params: Value, ctx: Ctx) -> Outcome {
    if method.ends_with("/list") {
        return list(handlers, method, params, &ctx).await;
    }
    let mut asked: Vec<(&Arc<Calls>, Value)> =
        handlers.iter().filter_map(|handler| Some((handler, handler.own_params(method, &params)?))).collect();
    asked.sort_by_key(|(handler, _)| Reverse(handler.prefix.len())); // the one that a name fits best is asked first
    let (mut closest, mut nothing) = (None, None);
    for (handler, params) in asked {
        match handler.answer(method, params, &ctx).await {
            Err(error) if handlers.len() > 1 && nearness(&error).is_some() => {
                if closest.as_ref().is_none_or(|before| nearness(&error) > nearness(before)) {
                    closest = Some(error);
                }
            }
            // A handler that knows nothing of what is to be completed proposes nothing.
            Ok(reply) if method == "completion/complete" && proposes_nothing(&reply) => {
                nothing.get_or_insert(reply);
            }
            outcome => return outcome,
        }
    }
    let none = || CallError::InvalidParams("params name nothing that this server has".into());
    nothing.map_or_else(|| Err(closest.unwrap_or_else(none)), Ok)
}

fn proposes_nothing(reply: &Reply) -> bool {
    reply.to_json()["completion"]["values"].as_array().is_none_or(Vec::is_empty)
}

/// One page of what all handlers have. Cursors say whose list they are of: `h1:` and the handler's own.
async fn list(handlers: &[Arc<Calls>], method: &'static str, mut params: Value, ctx: &Ctx) -> Outcome {
    let cursor = params["cursor"].as_str().unwrap_or("h0:").to_owned();
    let place = cursor.strip_prefix('h').and_then(|rest| rest.split_once(':'));
    let place = place.and_then(|(index, own)| Some((index.parse::<usize>().ok()?, own.to_owned())));
    let bad_cursor =
        || CallError::InvalidParams("params.cursor is none that this server gave; start again without one".into());
    let (index, own) = place.ok_or_else(bad_cursor)?;
    let handler = handlers.get(index).ok_or_else(bad_cursor)?;
    if let Some(params) = params.as_object_mut() {
        params.remove("cursor");
        if !own.is_empty() {
            params.insert("cursor".into(), own.into());
        }
    }
    let mut page = handler.request(method, params, ctx).await?;
    if method == "prompts/list" && !handler.prefix.is_empty() {
        for prompt in page["prompts"].as_array_mut().into_iter().flatten() {
            prompt["name"] = format!("{}{}", handler.prefix, prompt["name"].as_str().unwrap_or_default()).into();
        }
    }
    let next = match page["nextCursor"].as_str() {
        Some(next) => Some(format!("h{index}:{next}")),
        None => (index + 1 < handlers.len()).then(|| format!("h{}:", index + 1)),
    };
    if let (Some(page), Some(next)) = (page.as_object_mut(), next) {
        page.insert("nextCursor".into(), next.into());
    }
    reply_of(&page, Kind::Complete)
}

impl Calls {
    /// The params with the names that the handler itself uses; `None` when they name what another handler has.
    fn own_params(&self, method: &str, params: &Value) -> Option<Value> {
        let mut params = params.clone();
        let name = match method {
            "prompts/get" => &mut params["name"],
            "completion/complete" if params["ref"]["type"] == "ref/prompt" => &mut params["ref"]["name"],
            _ => return Some(params),
        };
        let own = name.as_str()?.strip_prefix(self.prefix.as_str())?.to_owned();
        *name = own.into();
        Some(params)
    }

    async fn answer(&self, method: &'static str, params: Value, ctx: &Ctx) -> Outcome {
        let result = self.request(method, params, ctx).await?;
        let kind = if result["resultType"] == "task" { Kind::Task } else { Kind::Complete };
        reply_of(&result, kind)
    }

    /// The result object of any method.
    async fn request(&self, method: &'static str, mut params: Value, ctx: &Ctx) -> Result<Value, CallError> {
        let uri = params["uri"].as_str().map(str::to_owned);
        let mut ctx = ctx.clone();
        let mut talk = Talk::new(&self.backs, &mut ctx);
        let (mut answers, mut kept) = said_before(&ctx);
        for _ in 0..ROUNDS_MAX {
            if let Some(params) = params.as_object_mut() {
                if !answers.is_empty() {
                    params.insert("inputResponses".into(), Value::Object(answers));
                }
                if let Some(kept) = kept {
                    params.insert("requestState".into(), kept.into());
                }
            }
            let is_last = talk.client.is_none();
            let request = request_of(method, params.clone()).map_err(CallError::InvalidParams)?;
            let context = talk.context(is_last).ok_or(CallError::Internal)?;
            let cancels = context.ct.clone().drop_guard();
            let result =
                talk.run(self.host.request(request, context)).await.map_err(|error| match (error.code, &uri) {
                    (ErrorCode::RESOURCE_NOT_FOUND, Some(uri)) => CallError::NoResource(uri.clone()),
                    _ => failed(error, talk.is_modern),
                })?;
            cancels.disarm();
            let mut result = serde_json::to_value(&result).map_err(|_| CallError::Internal)?;
            if result["resultType"] != "input_required" {
                return Ok(result);
            }
            let state = result["requestState"].as_str().map(str::to_owned);
            answers = talk.ask_all(result["inputRequests"].take(), state.as_deref()).await?;
            kept = state;
        }
        Err(CallError::tool(format!("{method} asked too many questions")))
    }
}

/// How near a handler that answers with this error is to having what it was asked for, so that the best of several
/// errors is told; `None` when it has it.
fn nearness(error: &CallError) -> Option<u8> {
    match error {
        CallError::Rpc { code, .. } if *code == ErrorCode::METHOD_NOT_FOUND.0 => Some(0),
        CallError::NoResource(_) => Some(1),
        CallError::Rpc { code, .. } if *code == ErrorCode::RESOURCE_NOT_FOUND.0 => Some(1),
        CallError::Rpc { code, .. } if *code == ErrorCode::INVALID_PARAMS.0 => Some(2),
        CallError::InvalidParams(_) => Some(2),
        _ => None,
    }
}
