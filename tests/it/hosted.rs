//! rmcp handlers, hosted as they are: what they do through rmcp's own types reaches the client in both eras, and nothing
//! that one caller's call says reaches another.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bigiron::{
    Handler, Lane, Server,
    rmcp::{
        ErrorData, RoleServer, ServerHandler,
        model::{
            CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ElicitRequestParams, ErrorCode,
            GetPromptRequestParams, GetPromptResponse, GetPromptResult, InputRequest, InputRequiredResult,
            ListPromptsResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam,
            ProgressToken, Prompt, PromptMessage, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
            Resource, ResourceContents, Role, ServerCapabilities, ServerConfig, Tool,
        },
        service::{Peer, RequestContext},
    },
    server::Running,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Client, Session, call, eventually, listen, meta, modern, modern_headers, start};

/// A handler that knows nothing of bigiron.
#[derive(Clone, Default)]
struct Plain {
    /// A peer that it keeps for longer than a call.
    kept: Arc<Mutex<Option<Peer<RoleServer>>>>,
    more_tools: Arc<AtomicUsize>,
    inside: Arc<AtomicUsize>,
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tool(name: &'static str) -> Tool {
    let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } } });
    let Value::Object(schema) = schema else { unreachable!("it is written as an object above") };
    Tool::new(name, "A tool of a plain handler", schema)
}

fn said(text: impl Into<String>) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResult::success(vec![ContentBlock::text(text.into())]).into())
}

fn question() -> ElicitRequestParams {
    serde_json::from_value(json!({
        "mode": "form",
        "message": "Who are you?",
        "requestedSchema": { "type": "object", "properties": { "name": { "type": "string" } } }
    }))
    .expect("a question")
}

impl ServerHandler for Plain {
    fn get_info(&self) -> ServerConfig {
        let able = ServerCapabilities::builder().enable_tools().enable_prompts().enable_resources().build();
        ServerConfig::new(able).with_instructions("Plain.")
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let names = ["echo", "steps", "ask", "ask_in_rounds", "keep", "fail", "hang", "grow"];
        let mut tools: Vec<Tool> = names.into_iter().map(tool).collect();
        if self.more_tools.load(Ordering::SeqCst) > 0 {
            tools.push(tool("grown"));
        }
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let text = request.arguments.as_ref().and_then(|a| a.get("text")).and_then(Value::as_str).unwrap_or_default();
        match request.name.as_ref() {
            "echo" => said(text),
            "steps" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for step in 1..=3 {
                        let progress = ProgressNotificationParam::new(token.clone(), f64::from(step)).with_total(3.0);
                        context.peer.notify_progress(progress).await.map_err(internal)?;
                        tokio::time::sleep(std::time::Duration::from_millis(15)).await;
                    }
                }
                said("stepped")
            }
            "ask" => {
                let answer = context.peer.create_elicitation(question()).await.map_err(internal)?;
                said(format!("Hello, {}!", answer.content.unwrap_or_default()["name"].as_str().unwrap_or("nobody")))
            }
            "ask_in_rounds" => match request.input_responses.as_ref().and_then(|answers| answers.get("name")) {
                Some(answer) if request.request_state.as_deref() == Some("round 1") => {
                    said(format!("Hello, {}!", answer["content"]["name"].as_str().unwrap_or("nobody")))
                }
                _ => {
                    let question: InputRequest =
                        serde_json::from_value(json!({ "method": "elicitation/create", "params": question() }))
                            .map_err(internal)?;
                    let required =
                        InputRequiredResult::new(Some([("name".to_owned(), question)].into()), Some("round 1".into()));
                    Ok(required.into())
                }
            },
            "keep" => {
                *self.kept.lock() = Some(context.peer);
                said("kept")
            }
            "fail" => Err(ErrorData::new(ErrorCode(-32042), "as asked", Some(json!({ "why": text })))),
            "hang" => {
                self.inside.fetch_add(1, Ordering::SeqCst);
                let _inside = Inside(Arc::clone(&self.inside));
                std::future::pending().await
            }
            "grow" => {
                self.more_tools.fetch_add(1, Ordering::SeqCst);
                context.peer.notify_tool_list_changed().await.map_err(internal)?;
                said("grown")
            }
            "grown" => said("new"),
            other => Err(ErrorData::invalid_params(format!("unknown tool {other}"), None)),
        }
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new("plain", Some("A prompt"), None)]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != "plain" {
            return Err(ErrorData::invalid_params("unknown prompt", None));
        }
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, "a plain prompt")]).into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![Resource::new("plain://one", "one")]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if request.uri != "plain://one" {
            return Err(ErrorData::resource_not_found("no such resource", None));
        }
        Ok(ReadResourceResult::new(vec![ResourceContents::text("one", request.uri)]).into())
    }
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

fn serve() -> (Running, Plain) {
    let plain = Plain::default();
    (start(Server::builder().host(Handler::new(plain.clone())), |_| {}), plain)
}

/// A request of 2026-07-28 by a client that can be asked.
fn able(id: i64, tool: &str, more: Value) -> Value {
    let mut params = json!({ "name": tool, "arguments": {} });
    params["_meta"] = meta();
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
    for (key, value) in more.as_object().into_iter().flatten() {
        params[key] = value.clone();
    }
    modern(id, "tools/call", params)
}

#[test]
fn a_handler_answers_in_both_eras() {
    let (running, _) = serve();
    let addr = running.addr();
    assert_eq!(call(addr, "echo", json!({ "text": "hello" })).text(), "hello");
    let mut session = Session::open(addr, "2025-11-25");
    let answer = session.request(1, "tools/call", json!({ "name": "echo", "arguments": { "text": "hello" } }));
    assert_eq!(answer.text(), "hello");
    assert!(answer.json()["result"].get("resultType").is_none(), "as the older revisions have it: {answer:?}");
    let failed = call(addr, "fail", json!({ "text": "because" })).json();
    assert_eq!(failed["error"], json!({ "code": -32042, "message": "as asked", "data": { "why": "because" } }));

    let ask = |method: &str, name: &str, params: Value| {
        Client::connect(addr).post(&modern_headers(method, name), &modern(1, method, params)).json()
    };
    assert_eq!(ask("prompts/list", "", json!({}))["result"]["prompts"][0]["name"], "plain");
    let prompt = ask("prompts/get", "plain", json!({ "name": "plain" }));
    assert_eq!(prompt["result"]["messages"][0]["content"]["text"], "a plain prompt");
    assert_eq!(ask("prompts/get", "x", json!({ "name": "x" }))["error"]["code"], -32602);
    let listed = ask("resources/list", "", json!({}));
    assert_eq!(listed["result"]["resources"][0]["uri"], "plain://one");
    assert!(listed["result"]["ttlMs"].is_u64(), "{listed}");
    let read = ask("resources/read", "plain://one", json!({ "uri": "plain://one" }));
    assert_eq!(read["result"]["contents"][0]["text"], "one");
    assert_eq!(ask("resources/read", "plain://two", json!({ "uri": "plain://two" }))["error"]["code"], -32602);
    let in_session = session.request(2, "resources/read", json!({ "uri": "plain://two" }));
    assert_eq!(in_session.code(), Some(-32002));
}

#[test]
fn progress_and_questions_go_to_their_own_call() {
    let (running, _) = serve();
    let addr = running.addr();
    let mut params = json!({ "name": "steps", "_meta": meta() });
    params["_meta"]["progressToken"] = "mine".into();
    let request = modern(1, "tools/call", params);
    let events = Client::connect(addr).post(&modern_headers("tools/call", "steps"), &request).events();
    let steps: Vec<_> = events.iter().filter_map(|e| e["params"]["progress"].as_f64()).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0], "{events:?}");
    assert!(events.iter().take(3).all(|e| e["params"]["progressToken"] == "mine"));

    let session = Session::open_with(addr, "2025-11-25", json!({ "elicitation": {} }));
    for tool in ["ask", "ask_in_rounds"] {
        let mut stream = session.stream(addr, tool, "tools/call", json!({ "name": tool }));
        let question = stream.message();
        assert_eq!(question["method"], "elicitation/create", "{question}");
        let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
        assert_eq!(session.answer(addr, &question, answer).status, 202);
        assert_eq!(stream.message()["result"]["content"][0]["text"], "Hello, Ada!");
    }

    let headers = modern_headers("tools/call", "ask_in_rounds");
    let asked = Client::connect(addr).post(&headers, &able(1, "ask_in_rounds", json!({}))).json();
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let state = asked["result"]["requestState"].clone();
    assert_ne!(state, "round 1", "the handler's state is sealed");
    let answers = json!({ "name": { "action": "accept", "content": { "name": "Ada" } } });
    let again = able(2, "ask_in_rounds", json!({ "inputResponses": answers, "requestState": state }));
    assert_eq!(Client::connect(addr).post(&headers, &again).text(), "Hello, Ada!");
    let forged = able(3, "ask_in_rounds", json!({ "inputResponses": answers, "requestState": "round 1" }));
    assert_eq!(Client::connect(addr).post(&headers, &forged).code(), Some(-32602));
}

#[test]
fn a_peer_that_is_kept_speaks_into_no_other_call() {
    let (running, plain) = serve();
    let addr = running.addr();
    assert_eq!(call(addr, "keep", json!({})).text(), "kept");
    let kept = plain.kept.lock().clone().expect("a peer");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let question = runtime.block_on(kept.create_elicitation(question()));
    assert!(question.is_err(), "nobody can be asked outside a call: {question:?}");
    // While the same way back is lent to another call, progress under another token is not that call's.
    let session = Session::open(addr, "2025-11-25");
    drop(session);
    let flood = std::thread::spawn(move || {
        let token: Value = "another's".into();
        let token = serde_json::from_value(token).expect("a token");
        for step in 1..200 {
            let _ = runtime.block_on(kept.notify_progress(ProgressNotificationParam::new(
                ProgressToken::clone(&token),
                f64::from(step) * 1000.0,
            )));
        }
    });
    let mut params = json!({ "name": "steps", "_meta": meta() });
    params["_meta"]["progressToken"] = "mine".into();
    let request = modern(1, "tools/call", params);
    let events = Client::connect(addr).post(&modern_headers("tools/call", "steps"), &request).events();
    let steps: Vec<_> = events.iter().filter_map(|e| e["params"]["progress"].as_f64()).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0]);
    flood.join().expect("ends");
}

#[test]
fn a_handler_grows_tools_and_clients_hear_of_it() {
    let (running, _) = serve();
    let addr = running.addr();
    let mut stream = listen(addr, 1, json!({ "toolsListChanged": true }));
    stream.message();
    assert_eq!(call(addr, "grown", json!({})).code(), Some(-32602));
    assert_eq!(call(addr, "grow", json!({})).text(), "grown");
    assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    assert_eq!(call(addr, "grown", json!({})).text(), "new");
}

#[test]
fn a_client_that_leaves_cancels_the_handler() {
    let (running, plain) = serve();
    let request = modern(1, "tools/call", json!({ "name": "hang" }));
    let mut client = Client::connect(running.addr());
    let headers = modern_headers("tools/call", "hang");
    client.send(&crate::support::post_bytes(&headers, request.to_string().as_bytes()));
    eventually("it runs", || plain.inside.load(Ordering::SeqCst) == 1);
    drop(client);
    eventually("it is dropped", || plain.inside.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_handler_on_a_thread_of_the_pool_can_ask() {
    let running = start(Server::builder().host(Handler::new(Plain::default()).lane("ask", Lane::Pool)), |_| {});
    let session = Session::open_with(running.addr(), "2025-11-25", json!({ "elicitation": {} }));
    let mut stream = session.stream(running.addr(), "ask", "tools/call", json!({ "name": "ask" }));
    let question = stream.message();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
    assert_eq!(session.answer(running.addr(), &question, answer).status, 202);
    assert_eq!(stream.message()["result"]["content"][0]["text"], "Hello, Ada!");
}

#[test]
fn handlers_are_served_side_by_side() {
    let server = Server::builder()
        .tool("own", "One of ours", Lane::Inline, |(): (), _| "own")
        .host(Handler::new(Plain::default()).prefix("one_").lane("echo", Lane::Pool))
        .host(Handler::new(Plain::default()).prefix("two_"));
    let running = start(server, |_| {});
    let addr = running.addr();
    assert_eq!(call(addr, "own", json!({})).text(), "own");
    for tool in ["one_echo", "two_echo"] {
        assert_eq!(call(addr, tool, json!({ "text": tool })).text(), tool);
    }
    let mut names = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let params = cursor.map_or_else(|| json!({}), |cursor| json!({ "cursor": cursor }));
        let page =
            Client::connect(addr).post(&modern_headers("prompts/list", ""), &modern(1, "prompts/list", params)).json();
        names.extend(page["result"]["prompts"].as_array().expect("prompts").iter().map(|p| p["name"].clone()));
        match page["result"]["nextCursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(names, ["one_plain", "two_plain"]);
    let get = modern(1, "prompts/get", json!({ "name": "two_plain" }));
    let got = Client::connect(addr).post(&modern_headers("prompts/get", "two_plain"), &get).json();
    assert_eq!(got["result"]["messages"][0]["content"]["text"], "a plain prompt");
}
