//! Calls that become tasks: there at once, told of when they change, taken back, and nobody else's business.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bigiron::{
    Ctx, Input, Server,
    error::CallError,
    server::{Builder, Running},
};
use serde_json::{Value, json};

use crate::support::{Client, Response, eventually, listen, meta, modern, modern_headers, start};

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server with the tools of these tests, of which `inside` says how many calls run.
pub(crate) fn tools(inside: &Arc<AtomicUsize>) -> Builder {
    let counted = Arc::clone(inside);
    Server::builder()
        .tasks()
        .async_tool("confirm", "Asks in the middle", |(): (), ctx: Ctx| async move {
            ctx.become_task().await?;
            let answer = ctx.ask("sure", Input::elicit("Sure?", json!({ "type": "object", "properties": {} }))).await?;
            Ok::<_, CallError>(format!("The user said {}", answer["action"].as_str().unwrap_or_default()))
        })
        .async_tool("hang", "Never ends by itself", move |(): (), ctx: Ctx| {
            counted.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(Arc::clone(&counted));
            async move {
                let _inside = inside;
                ctx.require_task().await?;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok::<_, CallError>("never")
            }
        })
}

fn serve(tune: impl FnOnce(&mut bigiron::config::Tuning)) -> (Running, Arc<AtomicUsize>) {
    let inside = Arc::<AtomicUsize>::default();
    (start(tools(&inside), tune), inside)
}

/// A request of a client that can fetch answers later.
fn ask(running: &Running, method: &str, name: &str, params: Value) -> Value {
    ask_over(Client::connect(running.addr()), method, name, params).json()
}

pub(crate) fn ask_over(mut client: Client, method: &str, name: &str, mut params: Value) -> Response {
    params["_meta"] = meta();
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
        json!({ "elicitation": {}, "extensions": { "io.modelcontextprotocol/tasks": {} } });
    let request = modern(1, method, params);
    client.post(&modern_headers(method, name), &request)
}

fn begin(running: &Running, tool: &str) -> String {
    let begun = ask(running, "tools/call", tool, json!({ "name": tool }));
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    begun["result"]["taskId"].as_str().expect("an id").to_owned()
}

fn get(running: &Running, id: &str) -> Value {
    ask(running, "tasks/get", id, json!({ "taskId": id }))["result"].clone()
}

#[test]
fn a_task_asks_is_answered_and_tells_its_listeners() {
    let (running, _) = serve(|_| {});
    let id = begin(&running, "confirm");
    eventually("it asks", || get(&running, &id)["status"] == "input_required");
    assert_eq!(get(&running, &id)["inputRequests"]["sure"]["method"], "elicitation/create");
    let mut stream = listen(running.addr(), "tasks", json!({ "taskIds": [id] }));
    assert_eq!(stream.message()["params"]["notifications"], json!({ "taskIds": [id] }));
    let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
    let taken = ask(&running, "tasks/update", &id, answers);
    assert_eq!(taken["result"]["resultType"], "complete", "{taken}");
    let told = loop {
        let message = stream.message();
        assert_eq!(message["method"], "notifications/tasks");
        assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "tasks");
        if message["params"]["status"] == "completed" {
            break message;
        }
    };
    assert_eq!(told["params"]["result"]["content"][0]["text"], "The user said accept");
    assert_eq!(get(&running, &id)["result"], told["params"]["result"]);
}

#[test]
fn a_task_is_taken_back_and_one_that_needs_to_be_one_is_refused_to_who_cannot() {
    let (running, inside) = serve(|_| {});
    let id = begin(&running, "hang");
    assert_eq!(get(&running, &id)["status"], "working");
    for _ in 0..2 {
        let taken = ask(&running, "tasks/cancel", &id, json!({ "taskId": id }));
        assert_eq!(taken["result"]["resultType"], "complete", "{taken}");
    }
    assert_eq!(get(&running, &id)["status"], "cancelled");
    eventually("its work is dropped", || inside.load(Ordering::SeqCst) == 0);
    let unknown = ask(&running, "tasks/get", "nothing", json!({ "taskId": "nothing" }));
    assert_eq!(unknown["error"]["code"], -32602);
    let refused = crate::support::call(running.addr(), "hang", json!({}));
    assert_eq!((refused.status, refused.code()), (400, Some(-32021)));
    let needed = &refused.json()["error"]["data"]["requiredCapabilities"];
    assert!(needed["extensions"]["io.modelcontextprotocol/tasks"].is_object(), "{needed}");
    assert_eq!(inside.load(Ordering::SeqCst), 0);
}

#[test]
fn no_caller_has_more_tasks_than_one_may_and_another_address_is_another_caller() {
    let (running, _) = serve(|tuning| tuning.tasks.per_caller_max = 2);
    let id = begin(&running, "hang");
    begin(&running, "hang");
    let refused = ask_over(Client::connect(running.addr()), "tools/call", "hang", json!({ "name": "hang" }));
    assert_eq!((refused.status, refused.code()), (429, Some(-31429)));
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("this caller has as many tasks as one may have"), "{message}");
    let elsewhere = || Client::connect_from([127, 0, 0, 2].into(), running.addr());
    let begun = ask_over(elsewhere(), "tools/call", "hang", json!({ "name": "hang" })).json();
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    // A client may come back from another address: the task is that of whoever knows its name.
    let found = ask_over(elsewhere(), "tasks/get", &id, json!({ "taskId": id })).json();
    assert_eq!(found["result"]["status"], "working", "{found}");
}

#[test]
fn the_server_has_no_more_tasks_than_the_settings_say() {
    let (running, _) = serve(|tuning| (tuning.tasks.tasks_max, tuning.tasks.per_caller_max) = (1, 1));
    begin(&running, "hang");
    let elsewhere = Client::connect_from([127, 0, 0, 2].into(), running.addr());
    let refused = ask_over(elsewhere, "tools/call", "hang", json!({ "name": "hang" }));
    assert_eq!((refused.status, refused.code()), (503, Some(-31503)));
}

#[test]
fn a_task_whose_time_is_over_makes_room_soon() {
    let (running, inside) = serve(|tuning| {
        (tuning.tasks.per_caller_max, tuning.tasks.timeout_ms, tuning.tasks.ttl_ms) = (1, 100, 100);
    });
    let id = begin(&running, "hang");
    eventually("its work is dropped", || inside.load(Ordering::SeqCst) == 0);
    eventually("it is gone", || {
        let gone = ask(&running, "tasks/get", &id, json!({ "taskId": id }));
        gone["error"]["code"] == -32602
    });
    begin(&running, "hang");
}
