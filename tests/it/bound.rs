//! What belongs to one caller is for no other: tasks and their streams, the state of rounds, and the token itself, which
//! no handler sees.

use bigiron::{
    Changes, Ctx, Handler, Input, Server,
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
};
use serde_json::{Value, json};

use crate::{
    identity::Issuer,
    support::{Client, Response, eventually, meta, modern, modern_headers, post_bytes, start},
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
