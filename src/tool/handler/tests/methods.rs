//! What handlers answer besides calls, one or several side by side.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_prompts_are_driven_in_sessions() {
    let (hosted, _) = host_plain().await;
    let (ctx, client) = in_session();
    let prompt = ask(&hosted, "prompts/get", json!({ "name": "one" }), ctx).await.expect("a prompt").to_json();
    assert_eq!(prompt["messages"][0]["content"]["text"], "Hello, Ada!");
    assert_eq!(client.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_hints_are_the_handlers_or_none() {
    let (hosted, _) = host_plain().await;
    for (method, params) in [("resources/list", json!({})), ("resources/read", json!({ "uri": "plain://one" }))] {
        let result = ask(&hosted, method, params, modern(ClientCapabilities::default())).await.expect("one").to_json();
        assert!(result.get("ttlMs").is_none(), "the handler set none: {result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_side_by_side_answer_for_what_is_theirs() {
    let hosted = host(vec![
        Handler::new(plain("one")),
        Handler::new(plain("two")).prefix("b_"),
        Handler::new(plain("one")).prefix("c_"),
    ])
    .await;
    let plainly = || modern(ClientCapabilities::ELICITATION);
    assert_eq!(text(call(&hosted, "b_nothing", plainly()).await), "nothing");
    let mut names = Vec::new();
    let mut cursor = json!({});
    loop {
        let page = ask(&hosted, "prompts/list", cursor, plainly()).await.expect("a page").to_json();
        names.push(page["prompts"][0]["name"].clone());
        match page.get("nextCursor") {
            Some(next) => cursor = json!({ "cursor": next }),
            None => break,
        }
    }
    assert_eq!(names, ["one", "b_two", "c_one"]);
    for name in ["one", "b_two", "c_one"] {
        let got = ask(&hosted, "prompts/get", json!({ "name": name }), plainly()).await;
        assert!(matches!(got, Err(CallError::InputRequired(_))), "{name}: {got:?}");
        let own = name.trim_start_matches("b_").trim_start_matches("c_");
        let params = json!({ "ref": { "type": "ref/prompt", "name": name }, "argument": { "name": "x", "value": "" } });
        let completed = ask(&hosted, "completion/complete", params, plainly()).await.expect("values").to_json();
        assert_eq!(completed["completion"]["values"], json!([format!("of {own}")]), "{name}");
    }
    for uri in ["plain://one", "plain://two"] {
        let read = ask(&hosted, "resources/read", json!({ "uri": uri }), plainly()).await.expect("read").to_json();
        assert_eq!(read["contents"][0]["uri"], uri);
    }
    let missing = ask(&hosted, "resources/read", json!({ "uri": "plain://x" }), plainly()).await;
    assert_eq!(missing, Err(CallError::NoResource("plain://x".into())));
    let unknown = ask(&hosted, "prompts/get", json!({ "name": "b_x" }), plainly()).await;
    assert!(
        matches!(&unknown, Err(CallError::Rpc { code: -32602, message, .. }) if message == "no prompt x"),
        "{unknown:?}"
    );
}
