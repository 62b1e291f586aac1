//! An operator's wish that kept results be forgotten: whether there is what it names, whether the other instances know of
//! it, and the lines that say so.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    audit,
    call::Caller,
    config::nearest,
    dispatch::Dispatch,
    front::admin::{Invalidation, Reach, Told, Wishing},
    identity::is_principal,
    mcp::{code::Refusal, router::Router},
    tool::CacheScope,
};

/// Has the cache forget what is named. The cache does not go through its results for that, so nobody knows how many.
/// `is_asked`: whether everybody who calls is asked who he is. What is returned resolves as soon as the others know it too,
/// or cannot be told now.
pub(super) fn results(router: &Router, wish: &Invalidation, who: &Wishing, is_asked: bool) -> Result<Told, Refusal> {
    let dispatch = &router.dispatch;
    if let Some(caller) = wish.caller.as_deref().filter(|caller| is_asked && !is_principal(caller)) {
        return Err(Refusal::invalid_request(format!(
            "{caller:?} is no caller here: where callers are asked who they are, write one as the audit log does, its \
             issuer, subject and client each with its length in bytes: \"12:bigiron:keys;3:ann;\" for the API keys of ann"
        )));
    }
    if let Some(caller) = wish.caller.as_deref().filter(|caller| !is_asked && *caller != Caller::ANONYMOUS.subject()) {
        return Err(Refusal::invalid_request(format!(
            "{caller:?} is no caller here: nobody is asked who he is, so that every caller is \"anonymous\""
        )));
    }
    if let Some(name) = &wish.tool {
        let scope = keeps_results(dispatch, name)?;
        if is_asked && scope == CacheScope::Caller && wish.arguments.is_some() && wish.caller.is_none() {
            return Err(Refusal::invalid_request(format!(
                "each caller has its own results of {name:?}: name the caller too, or leave the arguments out to forget \
                 all results of the tool"
            )));
        }
    }
    let arguments = wish.arguments.clone().map(Value::Object);
    dispatch
        .invalidate(wish.tool.as_deref(), arguments.as_ref(), wish.caller.as_deref())
        .map_err(Refusal::invalid_request)?;
    let by = who.identity.as_ref().map_or_else(|| Caller::ANONYMOUS.subject(), |identity| identity.principal());
    if let Some(audit) = &router.audit {
        let detail = match &wish.caller {
            _ if wish.all => "all".to_owned(),
            Some(caller) => format!("of {caller}"),
            None => String::new(),
        };
        let head = audit::Head {
            caller: by,
            key: who.identity.as_ref().and_then(|identity| identity.key()),
            address: Some(who.address),
            tool: wish.tool.as_deref(),
            detail: &detail,
            arguments: arguments.as_ref(),
            ..audit::Head::default()
        };
        audit.deed("invalidate", &head);
    }
    tracing::info!(
        all = wish.all,
        tool = wish.tool,
        caller = wish.caller,
        one_call = wish.arguments.is_some(),
        by,
        address = %who.address,
        "an operator had kept results forgotten"
    );
    let shared = dispatch.shared_results().map(Arc::clone);
    Ok(Box::pin(async move {
        let Some(shared) = shared else { return Reach::All };
        if shared.forgot().await {
            return Reach::All;
        }
        tracing::warn!(
            "Redis is away or takes no writes: the other instances forget these results as soon as it is back and does"
        );
        Reach::Here
    }))
}

/// Who shares the results of a tool, which must be one whose results are kept.
fn keeps_results(dispatch: &Dispatch, name: &str) -> Result<CacheScope, Refusal> {
    let tools = dispatch.tools();
    let kept = || tools.ordered().iter().filter(|tool| tool.cache.is_some()).map(|tool| tool.tool.name());
    let of = match kept().take(NAMED_MAX).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "no tool has its results kept".to_owned(),
        names if kept().count() > NAMED_MAX => format!("results are kept of: {names} and others"),
        names => format!("results are kept of: {names}"),
    };
    let Some(tool) = tools.get(name) else {
        let meant = nearest(name, tools.ordered().iter().map(|tool| tool.tool.name()));
        let hint = meant.map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"));
        let message = format!("there is no tool {name:?}{hint}; {of}");
        return Err(Refusal { status: 404, ..Refusal::invalid_request(message) });
    };
    let policy = tool.cache.ok_or_else(|| {
        let message = format!("no results of {name:?} are kept, since tools.{name}.cache_ttl_s is not set; {of}");
        Refusal::invalid_request(message)
    })?;
    Ok(policy.scope)
}

/// Tools that are named; the rest are not.
const NAMED_MAX: usize = 12;
