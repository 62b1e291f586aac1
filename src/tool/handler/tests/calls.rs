//! Calls of a handler's tools: what they say and ask, how they end.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_made_by_macros_is_served() {
    let hosted = host(vec![Handler::new(ByMacros::new()).prefix("m_")]).await;
    assert_eq!(text(call(&hosted, "m_hello", modern(ClientCapabilities::default())).await), "hello");
    assert!(hosted.methods.is_empty(), "it says that it has tools, and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_logs_reach_their_call() {
    let (hosted, _) = host_plain().await;
    let (ctx, outbox) = heard();
    assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
    let messages = messages(&outbox);
    assert_eq!(messages[0]["params"]["data"], "stepping", "{messages:?}");
    assert_eq!(messages[1], 3.0, "the newest progress: {messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_reach_the_client_of_a_session() {
    let (hosted, _) = host_plain().await;
    for tool in ["ask", "rounds"] {
        let (ctx, client) = in_session();
        assert!(text(call(&hosted, tool, ctx).await).contains("Ada"), "{tool}");
        assert_eq!(client.asked.load(Ordering::SeqCst), 1);
    }
    let asked = text(call(&hosted, "ask", modern(ClientCapabilities::ELICITATION)).await);
    assert!(asked.starts_with("not answered"), "nobody can be asked in the middle of a modern call: {asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_end_the_call_and_begin_it_again() {
    let (hosted, _) = host_plain().await;
    let again = || {
        let answers = json!({ "who": { "action": "accept", "content": { "name": "Ada" } } });
        let memory = Memory { kept: Some("round 1".into()), ..Memory::default() };
        let mut ctx = modern(ClientCapabilities::ELICITATION);
        ctx.exchange = Exchange::Rounds(Arc::new(Rounds::new(memory, answers.as_object().expect("object").clone())));
        ctx
    };
    let Err(CallError::InputRequired(required)) =
        call(&hosted, "rounds", modern(ClientCapabilities::ELICITATION)).await
    else {
        panic!("a question was expected")
    };
    assert_eq!(required.requests["who"]["method"], "elicitation/create");
    assert_eq!(required.memory.kept, Some("round 1".into()));
    assert_eq!(text(call(&hosted, "rounds", again()).await), "Hello, Ada!");

    let params = json!({ "name": "one" });
    let asked = ask(&hosted, "prompts/get", params.clone(), modern(ClientCapabilities::ELICITATION)).await;
    assert!(matches!(asked, Err(CallError::InputRequired(_))), "{asked:?}");
    let prompt = ask(&hosted, "prompts/get", params, again()).await.expect("a prompt").to_json();
    assert_eq!(prompt["messages"][0]["content"]["text"], "Hello, Ada!");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_only_for_clients_that_know_tasks() {
    let (hosted, _) = host_plain().await;
    let task = call(&hosted, "task", modern(ClientCapabilities::TASKS)).await.expect("a task");
    assert_eq!(task.kind, Kind::Task);
    let refused = call(&hosted, "task", modern(ClientCapabilities::default())).await;
    assert_eq!(refused, Err(CallError::MissingCapability(ClientCapabilities::TASKS)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_ends_its_handler() {
    let (hosted, plain) = host_plain().await;
    let called =
        tokio::time::timeout(Duration::from_millis(50), call(&hosted, "hang", modern(ClientCapabilities::default())));
    assert!(called.await.is_err());
    assert_eq!(plain.inside.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_its_own_calls_and_the_way_back_goes_on() {
    let (hosted, _) = host_plain().await;
    let hosted = Arc::new(hosted);
    for _ in 0..5 {
        let panicking = Arc::clone(&hosted);
        let called =
            tokio::spawn(async move { call(&panicking, "panic", modern(ClientCapabilities::default())).await });
        assert!(called.await.is_err(), "what runs tools contains it");
        let (ctx, outbox) = heard();
        assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
        assert_eq!(messages(&outbox).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_not_what_its_tool_returns_is_an_error() {
    let (hosted, _) = host_plain().await;
    let sum = async |name| call(&hosted, name, modern(ClientCapabilities::default())).await;
    assert_eq!(sum("sum").await.expect("as it says").to_json()["structuredContent"]["sum"], 3);
    for (name, fault) in [("sum_wrong", "/sum: "), ("sum_missing", "no structured content")] {
        let told = sum(name).await.expect_err("it is not what it says").to_string();
        assert!(told.contains(fault) && told.contains("a fault of the tool"), "{told}");
    }
    assert!(sum("sum_failed").await.expect("it says so itself").is_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_checked_by_the_draft_that_its_tool_names_and_not_by_one_that_is_not_known() {
    let (hosted, _) = host_plain().await;
    let pair = async |name| call(&hosted, name, modern(ClientCapabilities::default())).await;
    assert_eq!(pair("pair").await.expect("as it says").to_json()["structuredContent"]["pair"], json!(["a"]));
    let told = pair("pair_wrong").await.expect_err("it is not what it says").to_string();
    assert!(told.contains("/pair: "), "{told}");
    assert!(pair("pair_unknown").await.is_ok(), "nobody knows whether it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_at_once_are_bounded_and_all_answered() {
    let (hosted, _) = host_plain().await;
    let refused = text(call(&hosted, "flood", modern(ClientCapabilities::default())).await);
    assert_eq!(refused, "500");
    let (ctx, client) = in_session();
    let refused: usize = text(call(&hosted, "flood", ctx).await).parse().expect("a number");
    assert_eq!(refused + client.asked.load(Ordering::SeqCst), 500, "each is asked or refused");
}

/// Runs a tool of the worker pool as the pool does.
fn run_on_this_thread(work: &Work, ctx: Ctx) -> Result<Reply, CallError> {
    match &work.run {
        Run::Sync(run) => run(json!({}), ctx),
        Run::Async(_) => panic!("{} does not run in the pool", work.name),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_pool_runs_handlers_and_lets_go_of_them() {
    let plain = plain("one");
    let handler = Handler::new(plain.clone()).lane("nothing", Lane::Pool).lane("hang", Lane::Pool);
    let hosted = Arc::new(host(vec![handler]).await);
    let work = |name: &str| Arc::clone(&hosted.tools.iter().find(|t| t.name() == name).expect("a tool").work);
    // On a thread of the pool, and on one of the runtime, which the pool borrows when it is full.
    let nothing = work("nothing");
    let other = Arc::clone(&nothing);
    let there = std::thread::spawn(move || run_on_this_thread(&other, modern(ClientCapabilities::default())));
    assert_eq!(text(there.join().expect("no panic")), "nothing");
    assert_eq!(text(run_on_this_thread(&nothing, modern(ClientCapabilities::default()))), "nothing");
    // A client that leaves takes the thread back.
    let hang = work("hang");
    let mut ctx = modern(ClientCapabilities::default());
    let ticket = crate::call::Ticket::default();
    ctx.ticket = Some(ticket.clone());
    let running = std::thread::spawn(move || run_on_this_thread(&hang, ctx));
    eventually("it runs", || plain.inside.load(Ordering::SeqCst) == 1).await;
    ticket.give_up();
    eventually("it has ended", || running.is_finished()).await;
    assert_eq!(plain.inside.load(Ordering::SeqCst), 0);
}
