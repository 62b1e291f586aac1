//! What belongs to one caller is for no other: tasks and their streams, the state of rounds, and the token itself, which
//! no handler sees.

use bigiron::{
    Changes, Ctx, Handler, Input, Lane, Server,
    config::Tuning,
    error::CallError,
    rmcp::{
        ErrorData, RoleServer, ServerHandler,
        model::{
            CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
            PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
        },
        service::RequestContext,
    },
    server::Running,
    tool::Config,
};
use serde_json::{Value, json};

use crate::{
    identity::Issuer,
    redis::Redis,
    support::{Client, Response, Stream, eventually, meta, metric, modern, modern_headers, post_bytes, start},
};

fn serve(issuer: &Issuer) -> (Running, Changes) {
    issuer.key_for("somebody", &[]);
    let server = Server::builder()
        .tasks()
        .async_tool("later", "Asks in the middle, as a task where its client can", |(): (), ctx: Ctx| async move {
            ctx.become_task().await?;
            ctx.keep(json!("what its caller carries until the answer is there"));
            let answer = ctx.ask("sure", Input::elicit("Sure?", json!({ "type": "object", "properties": {} }))).await?;
            Ok::<_, CallError>(format!("{} said {}", ctx.caller().subject(), answer["action"]))
        })
        .host(Handler::new(Curious));
    let changes = server.changes();
    (start(server, |tuning| issuer.tune(tuning)), changes)
}

/// A handler that tells which headers it sees.
#[derive(Clone)]
struct Curious;

impl ServerHandler for Curious {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let Value::Object(schema) = json!({ "type": "object" }) else { unreachable!("it is written as an object") };
        Ok(ListToolsResult::with_all_items(vec![Tool::new("headers", "Tells which headers it sees", schema)]))
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let parts = context.extensions.get::<http::request::Parts>().expect("it came over HTTP");
        let names: Vec<&str> = parts.headers.keys().map(http::HeaderName::as_str).collect();
        Ok(CallToolResult::success(vec![ContentBlock::text(names.join(" "))]).into())
    }
}

/// A request of a client that can answer questions, and perhaps fetch answers later.
fn bytes(token: &str, method: &str, name: &str, mut params: Value, tasks: bool) -> Vec<u8> {
    params["_meta"] = meta();
    let able = &mut params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    *able = json!({ "elicitation": {} });
    if tasks {
        able["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
    }
    let bearer = format!("Bearer {token}");
    let mut headers = modern_headers(method, name).to_vec();
    headers.push(("Authorization", &bearer));
    post_bytes(&headers, modern(1, method, params).to_string().as_bytes())
}

fn ask(running: &Running, token: &str, method: &str, name: &str, params: Value, tasks: bool) -> Response {
    let mut client = Client::connect(running.addr());
    client.send(&bytes(token, method, name, params, tasks));
    client.receive().expect("an answer")
}

#[test]
fn a_task_is_its_callers_alone() {
    let issuer = Issuer::new();
    let (running, changes) = serve(&issuer);
    let (ann, bob) = (issuer.token("ann"), issuer.token("bob"));
    let begun = ask(&running, &ann, "tools/call", "later", json!({ "name": "later" }), true).json();
    let id = begun["result"]["taskId"].as_str().unwrap_or_else(|| panic!("no task: {begun}")).to_owned();
    let get = |token: &str| ask(&running, token, "tasks/get", &id, json!({ "taskId": id }), true).json();
    eventually("it asks", || get(&ann)["result"]["status"] == "input_required");
    // To another it is one that there is not, whatever is done with it.
    let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
    for (method, params) in [
        ("tasks/get", json!({ "taskId": id })),
        ("tasks/cancel", json!({ "taskId": id })),
        ("tasks/update", answers.clone()),
    ] {
        let mut unknown = params.clone();
        unknown["taskId"] = "unknown".into();
        let foreign = ask(&running, &bob, method, &id, params, true);
        let unknown = ask(&running, &bob, method, "unknown", unknown, true);
        assert_eq!((foreign.status, &foreign.body), (unknown.status, &unknown.body), "{method}");
        assert_eq!(foreign.code(), Some(-32602), "{method}");
    }
    // Nor does another hear of it: of two that listen, only ann is told.
    let listen = |token: &str| {
        let filter = json!({ "notifications": { "taskIds": [id], "toolsListChanged": true } });
        let mut stream = Client::connect(running.addr()).open(&bytes(token, "subscriptions/listen", "", filter, true));
        assert_eq!(stream.message()["params"]["notifications"]["taskIds"], json!([id]), "acknowledged");
        stream
    };
    let (mut anns, mut bobs) = (listen(&ann), listen(&bob));
    assert_eq!(ask(&running, &ann, "tasks/update", &id, answers, true).status, 200);
    while anns.message()["params"]["status"] != "completed" {}
    assert!(get(&ann)["result"]["result"]["content"][0]["text"].as_str().is_some_and(|text| text.contains("ann")));
    // All that bob's stream says, up to two changes that all hear of, is those: what had come before is said by then.
    for _ in 0..2 {
        changes.tools();
        assert_eq!(bobs.message()["method"], "notifications/tools/list_changed");
    }
}

#[test]
fn the_state_of_a_round_is_its_callers_alone() {
    let issuer = Issuer::new();
    let (running, _) = serve(&issuer);
    let (ann, bob) = (issuer.token("ann"), issuer.token("bob"));
    let asked = ask(&running, &ann, "tools/call", "later", json!({ "name": "later" }), false).json();
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let mut again = json!({ "name": "later", "inputResponses": { "sure": { "action": "accept", "content": {} } } });
    if let Some(state) = asked["result"].get("requestState") {
        again["requestState"] = state.clone();
    }
    assert!(again.get("requestState").is_some(), "a round has a state: {asked}");
    let foreign = ask(&running, &bob, "tools/call", "later", again.clone(), false).json();
    assert!(foreign["error"]["code"].is_i64(), "{foreign}");
    let own = ask(&running, &ann, "tools/call", "later", again, false);
    assert!(own.text().contains("ann"), "{own:?}");
}

#[test]
fn a_token_is_passed_on_to_nobody() {
    let issuer = Issuer::new();
    let (running, _) = serve(&issuer);
    let seen = ask(&running, &issuer.token("ann"), "tools/call", "headers", json!({ "name": "headers" }), false).text();
    assert!(seen.contains("mcp-name") && !seen.contains("authorization"), "{seen}");
}

/// Tools of which some ask for a scope: one becomes a task, one speaks in the middle and lets its client come back.
fn with_scopes(issuer: &Issuer, tune: impl FnOnce(&mut Tuning)) -> Running {
    if !issuer.file("keys.toml").exists() {
        issuer.key_for("somebody", &[]);
    }
    let server = Server::builder()
        .tasks()
        .tool("open", "Is for all", Lane::Inline, |(): (), _| "open to all")
        .async_tool("later", "Asks in the middle, as a task", |(): (), ctx: Ctx| async move {
            ctx.become_task().await?;
            ctx.ask("sure", Input::elicit("Sure?", json!({ "type": "object", "properties": {} }))).await?;
            Ok::<_, CallError>("the secret")
        })
        .async_tool("aloud", "Speaks, lets the connection go, and speaks on", |(): (), ctx: Ctx| speaks(ctx))
        .async_tool("gossip", "The same for all", |(): (), ctx: Ctx| speaks(ctx));
    start(server, |tuning| {
        issuer.tune(tuning);
        for tool in ["later", "aloud"] {
            let config = Config { scopes_any: Some(vec!["secrets".into()]), ..Config::default() };
            tuning.tools.insert(tool.into(), config);
        }
        tune(tuning);
    })
}

async fn speaks(ctx: Ctx) -> &'static str {
    ctx.progress(1.0, None, "first");
    ctx.release_connection();
    ctx.progress(2.0, None, "the secret");
    "the secret"
}

#[test]
fn a_task_is_judged_by_what_its_caller_may_today() {
    let issuer = Issuer::new();
    let running = with_scopes(&issuer, |_| {});
    let (more, less) = (issuer.token_with("ann", "secrets"), issuer.token_with("ann", "read"));
    let begin = || {
        let begun = ask(&running, &more, "tools/call", "later", json!({ "name": "later" }), true).json();
        begun["result"]["taskId"].as_str().unwrap_or_else(|| panic!("no task: {begun}")).to_owned()
    };
    let get = |token: &str, id: &str| ask(&running, token, "tasks/get", id, json!({ "taskId": id }), true);
    let id = begin();
    eventually("it asks", || get(&more, &id).json()["result"]["status"] == "input_required");
    let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
    let as_if_unknown = || {
        let bare = json!({ "taskId": id });
        for (method, params) in [("tasks/get", &bare), ("tasks/cancel", &bare), ("tasks/update", &answers)] {
            let mut other = params.clone();
            other["taskId"] = "unknown".into();
            let hidden = ask(&running, &less, method, &id, params.clone(), true);
            let unknown = ask(&running, &less, method, "unknown", other, true);
            assert_eq!((hidden.status, &hidden.body), (unknown.status, &unknown.body), "{method}");
            assert_eq!(hidden.code(), Some(-32602), "{method}");
        }
    };
    as_if_unknown();
    assert_eq!(get(&more, &id).json()["result"]["status"], "input_required", "nothing was done to it");
    assert_eq!(ask(&running, &more, "tasks/update", &id, answers.clone(), true).status, 200);
    eventually("it ends", || get(&more, &id).json()["result"]["status"] == "completed");
    as_if_unknown();
    let told = String::from_utf8_lossy(&get(&more, &id).body).into_owned();
    assert!(told.contains("the secret"), "{told}");
}

/// One request in a session of `token`.
fn session_bytes(token: &str, session: &str, head: &str, body: &Value) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    if head.is_empty() {
        let mut headers = vec![("Authorization", bearer.as_str())];
        if !session.is_empty() {
            headers.push(("Mcp-Session-Id", session));
        }
        return post_bytes(&headers, body.to_string().as_bytes());
    }
    let usual = "Host: 127.0.0.1\r\nAccept: text/event-stream";
    format!("GET /mcp HTTP/1.1\r\n{usual}\r\nAuthorization: {bearer}\r\nMcp-Session-Id: {session}\r\n{head}\r\n")
        .into_bytes()
}

fn open_session(running: &Running, token: &str, version: &str) -> String {
    let params =
        json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let mut client = Client::connect(running.addr());
    client.send(&session_bytes(token, "", "", &initialize));
    let opened = client.receive().expect("an answer");
    let id = opened.header("mcp-session-id").unwrap_or_else(|| panic!("no session: {opened:?}")).to_owned();
    client.send(&session_bytes(token, &id, "", &json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })));
    assert_eq!(client.receive().expect("an answer").status, 202);
    id
}

/// Calls a tool that speaks, and the id of its first event.
fn first_event(running: &Running, token: &str, session: &str, tool: &str) -> String {
    let params = json!({ "name": tool, "_meta": { "progressToken": 1 } });
    let call = json!({ "jsonrpc": "2.0", "id": tool, "method": "tools/call", "params": params });
    let mut stream = Client::connect(running.addr()).open(&session_bytes(token, session, "", &call));
    let mut ids = Vec::new();
    while let Some(event) = stream.next() {
        ids.extend(event.id);
    }
    ids.first().unwrap_or_else(|| panic!("an event had an id")).clone()
}

/// What is told after an event.
fn rest(running: &Running, token: &str, session: &str, event_id: &str) -> String {
    let head = format!("Last-Event-ID: {event_id}\r\n");
    let mut stream = Client::connect(running.addr()).open(&session_bytes(token, session, &head, &Value::Null));
    let mut said = String::new();
    while let Some(event) = stream.next() {
        said.extend(event.message.map(|message| message.to_string()));
    }
    said
}

/// While instances are renewed one after the other, one may have tools that another has not.
#[test]
fn what_a_tool_said_that_is_not_here_is_told_to_those_who_might_have_called_it_everywhere() {
    let (issuer, redis) = (Issuer::new(), Redis::start());
    let cluster = |id: &'static str| {
        let url = redis.url();
        move |tuning: &mut Tuning| {
            (tuning.cluster.redis, tuning.cluster.node_id, tuning.cluster.command_timeout_ms) = (url, id.into(), 2000);
        }
    };
    let a = with_scopes(&issuer, cluster("a"));
    let b = start(Server::builder().tool("open", "Is for all", Lane::Inline, |(): (), _| "open to all"), |tuning| {
        issuer.tune(tuning);
        cluster("b")(tuning);
    });
    let c = start(Server::builder().tool("other", "Is for some", Lane::Inline, |(): (), _| "other"), |tuning| {
        issuer.tune(tuning);
        let config = Config { scopes_any: Some(vec!["secrets".into()]), ..Config::default() };
        tuning.tools.insert("other".into(), config);
        cluster("c")(tuning);
    });
    let (more, less) = (issuer.token_with("ann", "secrets"), issuer.token_with("ann", "read"));
    let session = open_session(&a, &more, "2025-11-25");
    let [aloud, gossip] = ["aloud", "gossip"].map(|tool| first_event(&a, &more, &session, tool));
    for token in [&less, &more] {
        let said = [&b, &c].map(|server| rest(server, token, &session, &aloud));
        assert_eq!(said, ["", ""], "nobody knows here who may call it");
        assert_eq!(rest(&c, token, &session, &gossip), "", "nor where some tools are for some");
        assert!(rest(&b, token, &session, &gossip).contains("the secret"));
    }
    assert_eq!(rest(&a, &less, &session, &aloud), "");
    assert!(rest(&a, &more, &session, &aloud).contains("the secret"));
}

#[test]
fn what_one_may_not_call_any_more_is_not_told_again() {
    let issuer = Issuer::new();
    let running = with_scopes(&issuer, |_| {});
    let (more, less) = (issuer.token_with("ann", "secrets"), issuer.token_with("ann", "read"));
    let session = open_session(&running, &more, "2025-11-25");
    let first = first_event(&running, &more, &session, "aloud");
    let again = |token: &str| rest(&running, token, &session, &first);
    // The session is the same caller's, and what was said in it is not for fewer rights than it was said to.
    assert_eq!(again(&less), "");
    assert!(again(&more).contains("the secret"));
    let call = |token: &str| {
        let mut client = Client::connect(running.addr());
        let call = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "open" } });
        client.send(&session_bytes(token, &session, "", &call));
        client.receive().expect("an answer").text()
    };
    assert_eq!((call(&less), call(&more)), ("open to all".into(), "open to all".into()), "both have the session");
}

fn listen_as(running: &Running, token: &str) -> Stream {
    let filter = json!({ "notifications": { "toolsListChanged": true } });
    let mut stream = Client::connect(running.addr()).open(&bytes(token, "subscriptions/listen", "", filter, true));
    assert_eq!(stream.message()["method"], "notifications/subscriptions/acknowledged");
    stream
}

/// Streams that were open end, and none can be opened; of another's nothing ends.
#[test]
fn a_stream_is_open_for_as_long_as_its_key_is_good() {
    let issuer = Issuer::new();
    let (key, stays) = (issuer.key_for("ann", &[]), issuer.key_for("bob", &[]));
    let running = with_scopes(&issuer, |_| {});
    let session = open_session(&running, &key, "2025-11-25");
    let events = session_bytes(&key, &session, "X-Nothing: 1\r\n", &Value::Null);
    let mut of_session = Client::connect(running.addr()).open(&events);
    assert_eq!(of_session.status, 200);
    let (mut listening, _others) = (listen_as(&running, &key), listen_as(&running, &stays));
    eventually("three are open", || metric(&running, "bigiron_streams") >= 3.0);
    issuer.revoke(&key);
    assert_eq!(listening.next(), None, "it ended, and said nothing");
    while let Some(event) = of_session.next() {
        assert_eq!(event.message, None, "it said nothing");
    }
    eventually("only bob's is open", || metric(&running, "bigiron_streams") <= 1.0);
    let refused = Client::connect(running.addr()).open(&events);
    assert_eq!(refused.status, 401);
    assert_eq!(ask(&running, &stays, "tools/call", "open", json!({ "name": "open" }), false).text(), "open to all");
}

#[test]
fn a_stream_is_open_for_as_long_as_its_token_is_good() {
    let issuer = Issuer::new();
    let running = with_scopes(&issuer, |tuning| tuning.auth.leeway_s = 0);
    let mut soon_over = listen_as(&running, &issuer.token_for("ann", 2));
    let _stays = listen_as(&running, &issuer.token("bob"));
    assert_eq!(soon_over.next(), None);
    eventually("only bob's is open", || metric(&running, "bigiron_streams") <= 1.0);
}

/// What one may have of sessions and tasks is counted by who it is: not by token, and not for anybody else.
#[test]
fn limits_of_a_caller_are_crossed_by_one_and_by_nobody_else() {
    let issuer = Issuer::new();
    let running = with_scopes(&issuer, |tuning| (tuning.sessions.per_caller_max, tuning.tasks.per_caller_max) = (2, 2));
    let tokens = |subject: &str| [issuer.token_with(subject, "secrets"), issuer.token_with(subject, "secrets more")];
    let (ann, bob) = (tokens("ann"), tokens("bob"));
    let begin = |token: &str| ask(&running, token, "tools/call", "later", json!({ "name": "later" }), true).json();
    let is_task = |answer: &Value| answer["result"]["resultType"] == "task";
    for token in &ann {
        open_session(&running, token, "2025-11-25");
        assert!(is_task(&begin(token)));
    }
    let params =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    for token in &ann {
        let mut client = Client::connect(running.addr());
        client.send(&session_bytes(token, "", "", &initialize));
        let refused = client.receive().expect("an answer");
        assert_eq!((refused.status, refused.code()), (429, Some(-31429)), "{refused:?}");
        assert!(!is_task(&begin(token)), "a third task");
    }
    for token in &bob {
        open_session(&running, token, "2025-11-25");
        assert!(is_task(&begin(token)));
    }
}
