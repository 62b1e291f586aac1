//! What `query_json` promises: what jq says, every result once, and no program that takes the server with it.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::toolbox::tests::{call, cancelled_ctx, cancelled_while_running, ctx, ctx_with, folder, refused, root_of};

fn json_tool(dir: &TempDir, output_bytes_max: usize, memory_bytes_max: ByteSize) -> Tool {
    let file_bytes_max = ByteSize::mib(1);
    QueryJson { root: root_of(dir), output_bytes_max, file_bytes_max, memory_bytes_max }.tool()
}

fn tool(dir: &TempDir) -> Tool {
    json_tool(dir, 65_536, ByteSize::mib(64))
}

/// What the program yields over the value.
fn yields(program: &str, value: Value) -> Value {
    let dir = folder(&[]);
    let results = call(&tool(&dir), json!({"program": program, "json": value}), ctx());
    results.unwrap_or_else(|error| panic!("{program}: {error:?}"))["results"].take()
}

/// What the agent is told about a program that does not work.
fn fails(program: &str) -> String {
    let dir = folder(&[]);
    refused(&tool(&dir), json!({"program": program, "json": {"a": [1, 2]}}))
}

#[test]
fn programs_yield_what_jq_yields() {
    let value = json!({"items": [{"name": "b", "price": 5, "tags": ["x"]}, {"name": "a", "price": 12.5, "tags": []}], "n": null});
    for (program, expected) in [
        (".", json!([value.clone()])),
        (".items[].name", json!(["b", "a"])),
        (".items | map(select(.price > 10) | .name)", json!([["a"]])),
        (".items | sort_by(.name) | .[0].price", json!([12.5])),
        ("[.items[].price] | add, length, min, max", json!([17.5, 2, 5, 12.5])),
        ("keys", json!([["items", "n"]])),
        (".items[0] | keys_unsorted", json!([["name", "price", "tags"]])),
        (".missing, .missing.deeper, .n.x", json!([null, null, null])),
        (".items | group_by(.price > 10) | map(length)", json!([[1, 1]])),
        ("[paths(type == \"number\")]", json!([[["items", 0, "price"], ["items", 1, "price"]]])),
        (".items[1:] | length", json!([1])),
        (".items[-1].name", json!(["a"])),
        (".items |= map(.price) | .items", json!([[5, 12.5]])),
        (".items[0].price += 1 | .items[0].price", json!([6])),
        (".new.deep[2] = 7 | .new", json!([{"deep": [null, null, 7]}])),
        ("del(.items[0]) | .items | length", json!([1])),
        ("del(.items, .n)", json!([{}])),
        ("to_entries | map(.key)", json!([["items", "n"]])),
        ("with_entries(.key |= ascii_upcase) | keys", json!([["ITEMS", "N"]])),
        ("[.items[] | {(.name): .price}] | add", json!([{"b": 5, "a": 12.5}])),
        ("reduce .items[] as $i (0; . + $i.price)", json!([17.5])),
        ("[foreach range(4) as $i (0; . + $i)]", json!([[0, 1, 3, 6]])),
        ("[limit(3; repeat(1))], [range(0; 10; 4)], [1, 2] - [2]", json!([[1, 1, 1], [0, 4, 8], [1]])),
        ("def f($x): if $x <= 1 then 1 else $x * f($x - 1) end; f(10)", json!([3_628_800])),
        ("try error(\"x\") catch ., (.items[0].name | try tonumber catch \"no\")", json!(["x", "no"])),
        ("\"\\(.items[0].name)!\" | ., test(\"^B\"; \"i\"), sub(\"b\"; \"c\")", json!(["b!", true, "c!"])),
        (
            "\"aXbxc\" | [splits(\"x\"; \"i\")], [scan(\"[a-c]\")], gsub(\"(?<l>[a-c])\"; \"<\\(.l)>\")",
            json!([["a", "b", "c"], ["a", "b", "c"], "<a>X<b>x<c>"]),
        ),
        (
            "\"é1 ü22\" | [match(\"\\\\d+\"; \"g\") | [.offset, .length, .string]], capture(\"(?<d>\\\\d)\")",
            json!([[[1, 1, "1"], [4, 2, "22"]], {"d": "1"}]),
        ),
        (
            "\"a,b\" / \",\", (\"a,b\" | split(\",\")), ([\"a\", \"b\"] | join(\"-\")), \"ab\" * 2",
            json!([["a", "b"], ["a", "b"], "a-b", "abab"]),
        ),
        (
            "[1, \"a\\\"b\", null] | @csv, @json, @base64, (@base64 | @base64d)",
            json!(["1,\"a\"\"b\",", "[1,\"a\\\"b\",null]", "WzEsImFcImIiLG51bGxd", "[1,\"a\\\"b\",null]"]),
        ),
        (
            "1 / 3 * 3, 7 % 4, -7 % 4, 4 / 2, 5 / 2, 1e3, 9007199254740993 + 1",
            json!([1.0, 3, -3, 2, 2.5, 1000.0, 9_007_199_254_740_994_i64]),
        ),
        (
            "[nan] | sort | .[0] | isnan, (nan < nan), ([nan, 1, nan] | sort | length), (infinite | tostring)",
            json!([true, true, 3, "null"]),
        ),
        ("[true, \"a\", [], null, {}, 1, false] | sort", json!([[null, false, true, 1, "a", [], {}]])),
        (
            "{a: 1} + {b: 2}, ({a: {b: 1}} * {a: {c: 2}}), ({a: 1} == {a: 1.0})",
            json!([{"a": 1, "b": 2}, {"a": {"b": 1, "c": 2}}, true]),
        ),
        (
            "\"abc\" | .[1:], contains(\"bc\"), index(\"c\"), ltrimstr(\"a\"), explode",
            json!(["bc", true, 2, "bc", [97, 98, 99]]),
        ),
        (
            "[1, [2, [3]]] | flatten, (.. | numbers), any(. == 1), (tojson | fromjson)",
            json!([[1, 2, 3], 1, 2, 3, true, [1, [2, [3]]]]),
        ),
        (
            "{\"a\": [1, {\"b\": 2}]} | [leaf_paths], getpath([\"a\", 1, \"b\"]), [.. | scalars], pick(.a[1].b)",
            json!([[["a", 0], ["a", 1, "b"]], 2, [1, 2], {"a": [null, {"b": 2}]}]),
        ),
        ("label $out | foreach (1, 2, 3) as $i (0; $i; if . > 1 then ., break $out else . end)", json!([1, 2])),
        (
            "[.[]?], (.items[0] | has(\"name\", \"x\")), (\"a\" | IN(\"a\", \"b\"))",
            json!([[value["items"].clone(), null], true, false, true]),
        ),
        ("INDEX(.items[]; .name) | .a.price", json!([12.5])),
        (
            "0 | todate, (\"2024-02-29T00:00:00Z\" | fromdate), (0 | gmtime | mktime), (0 | strftime(\"%Y\"))",
            json!(["1970-01-01T00:00:00Z", 1_709_164_800, 0, "1970"]),
        ),
    ] {
        assert_eq!(yields(program, value.clone()), expected, "{program}");
    }
}

#[test]
fn files_are_read_as_json_or_json_lines() {
    let dir = folder(&[
        ("a.json", b"\xEF\xBB\xBF {\"big\": 12345678901234567890, \"z\": 1, \"a\": 1.0, \"m\": 1e400}".as_slice()),
        ("b.json", b"{\"z\": 1, \"a\": 1.0}"),
        ("lines.jsonl", b"{\"n\": 1}\n{\"n\": 2}\n\n{\"n\": 3}"),
        ("bad.json", b"{\"a\": 1,\n \"b\": }"),
        ("empty.json", b""),
        ("deep.json", "[".repeat(200).as_bytes()),
        ("large.json", " ".repeat((1 << 20) + 1).as_bytes()),
    ]);
    let tool = tool(&dir);
    let ask = |arguments: Value| call(&tool, arguments, ctx()).expect("runs")["results"].take();
    let b = call(&tool, json!({"program": ".", "path": "b.json"}), ctx()).unwrap();
    assert_eq!(b["results"], json!([{"z": 1, "a": 1.0}]));
    assert_eq!(ask(json!({"program": ".n", "path": "lines.jsonl"})), json!([1, 2, 3]));
    assert_eq!(ask(json!({"program": "map(.n) | add", "path": "lines.jsonl", "slurp": true})), json!([6]));
    assert_eq!(ask(json!({"program": ".", "path": "empty.json"})), json!([]));
    assert_eq!(ask(json!({"json": null, "program": "1 + 1"})), json!([2]));
    assert!(refused(&tool, json!({"program": "1 + 1"})).contains("nothing to query"));
    assert!(refused(&tool, json!({"program": ".", "path": "a.json"})).contains("number out of range"));
    assert!(refused(&tool, json!({"program": ".", "path": "bad.json"})).contains("line 2 column 7"));
    assert!(refused(&tool, json!({"program": ".", "path": "deep.json"})).contains("nested deeper"));
    assert!(refused(&tool, json!({"program": ".", "path": "large.json"})).contains("search_text"));
    assert!(refused(&tool, json!({"program": ".", "path": "../x"})).contains("relative"));
    assert!(refused(&tool, json!({"program": ".", "path": "b.json", "json": 1})).contains("one of them"));
}

#[test]
fn the_order_of_members_is_kept() {
    let dir = folder(&[("f.json", br#"{"z":1,"a":{"y":2,"b":3}}"#)]);
    let query = QueryJson {
        root: root_of(&dir),
        output_bytes_max: 4096,
        file_bytes_max: ByteSize::mib(1),
        memory_bytes_max: ByteSize::mib(64),
    };
    let args = serde_json::from_value(json!({"program": ". + {c: 0} | del(.a.y)", "path": "f.json"})).unwrap();
    assert_eq!(query.query(&args, &ctx()).unwrap().results[0].get(), r#"{"z":1,"a":{"b":3},"c":0}"#);
}

#[test]
fn mistakes_are_explained() {
    for (program, says) in [
        (".a[", "(at its end)"),
        (".a |", "expected term (at its end)"),
        ("map(.x", "the end of what \"(\" opens"),
        (".a\n| }", "line 2, column 3"),
        ("lenght", "did you mean length?"),
        ("map", "another number of arguments"),
        ("$x", "there is no variable $x"),
        ("frobnicate(1)", "there is no function frobnicate/1"),
        ("env", "there is no function env/0"),
        ("$ENV", "there is no variable $ENV"),
        ("input", "there is no function input/0"),
        ("halt", "there is no function halt/0"),
        ("import \"a\" as a; 1", "imports a module"),
        ("include \"a\"; 1", "imports a module"),
        (".a.b", "cannot index [1,2] with \"b\""),
        (".a + 1", "cannot calculate [1,2] + 1"),
        ("error({x: 1})", "{\"x\":1}"),
        ("def f(g): g | f(g); f(1)", "\"f\" calls itself"),
        ("def f(g): def h: [f(g)]; h; f(1)", "\"f\" calls itself"),
        ("\"a\" | test(\"(\")", "invalid regular expression"),
        ("\"a\" | test(\"a\"; \"q\")", "no flag 'q'"),
        ("\"a\" | test(\"\\\\w{9999}\")", "invalid regular expression"),
        ("(\"a\" * 2000000) | test(\"a\")", "too long for a regular expression"),
        ("1 % 0", "cannot calculate 1 % 0"),
    ] {
        let told = fails(program);
        assert!(told.contains(says), "{program}: {told}");
    }
    assert!(fails(&format!(".{}", " ".repeat(program::PROGRAM_BYTES_MAX))).contains("at most 8000"));
}

#[test]
fn pages_hold_every_result_once() {
    let dir = folder(&[("n.jsonl", (0..700).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>().as_bytes())]);
    for (bytes, results_max, arguments) in [
        (4_096, 10_000, json!({"json": null, "program": "range(700) | {n: ., \"quote\\\"\": \"é\\u0001\"}"})),
        (65_536, 7, json!({"json": null, "program": "range(700) | {n: .}"})),
        (4_096, 100, json!({"program": "., empty", "path": "n.jsonl"})),
    ] {
        let tool = json_tool(&dir, bytes, ByteSize::mib(64));
        let (mut seen, mut skip) = (Vec::new(), json!(0));
        loop {
            let mut arguments = arguments.clone();
            arguments["results_max"] = results_max.into();
            arguments["skip"] = skip;
            let page = call(&tool, arguments, ctx()).unwrap();
            assert!(page.to_string().len() <= bytes);
            seen.extend(page["results"].as_array().unwrap().iter().map(|result| result["n"].as_u64().unwrap()));
            if page["more"] == false {
                break;
            }
            skip = page["next_skip"].clone();
        }
        assert!(seen.iter().copied().eq(0..700), "{bytes} bytes, {results_max} results");
    }
    let told = refused(&tool(&dir), json!({"json": null, "program": "[range(20000)]"}));
    assert!(told.contains("of type array") && told.contains(".[:10]"), "{told}");
}

/// Programs that never end, or yield nothing for ever.
const ENDLESS: [&str; 14] = [
    "def f: f; f",
    "last(repeat(1))",
    "last(range(1e15))",
    "reduce range(1e15) as $x (0; . + $x)",
    "[range(1e15) | empty]",
    "[repeat(empty)]",
    "until(false; .)",
    "first(repeat(1) | select(. > 1))",
    "def f: 1 as $x | f; f",
    "def f($x): f($x + 1); f(0)",
    "repeat(try error catch empty)",
    "foreach repeat(1) as $x (0; . + 1; empty)",
    "skip(1e15; repeat(1))",
    "label $l | repeat(1) | if . > 1 then break $l else empty end",
];

/// Programs that build without end, each in another way.
const GROWING: [&str; 24] = [
    "[range(1e15)]",
    "[repeat(1)]",
    "\"a\" * 100000000000",
    "\"a\" * 1e18",
    "reduce range(100) as $i (\"ab\"; . + .)",
    "last(\"a\" | recurse(. + .))",
    "reduce range(1e15) as $i ([]; . + [$i])",
    "reduce range(1e15) as $i ({}; . + {\"\\($i)\": 1})",
    "reduce range(100) as $i ([1]; [.[], .[]])",
    "reduce range(100) as $i ([1]; [., .]) | tojson",
    ".[1000000000000] = 1",
    "null | .[900000000000000000] = 1",
    "def f: f, 1; f",
    "def f: (f | 1), 1; f",
    "def f: [f]; f",
    "def f: 1 + f; f",
    "def f: {a: f}; f",
    "reduce range(1e15) as $i (null; [.])",
    "reduce range(1e15) as $i (null; {a: .})",
    "last(recurse([.]))",
    "path(last(recurse(.a)))",
    "path(last(recurse(.b[0:])))",
    "[1] | path(last(recurse(.[0:])))",
    "[limit(1e15; repeat(\"x\"))] | length",
];

#[test]
fn programs_without_end_are_stopped() {
    let dir = folder(&[]);
    let tool = tool(&dir);
    for program in ENDLESS {
        let arguments = json!({"json": null, "program": program});
        assert_eq!(call(&tool, arguments, ctx_with(100)), Err(CallError::TimedOut { limit_ms: 100 }), "{program}");
    }
    let endless = json!({"json": null, "program": ENDLESS[0]});
    assert_eq!(cancelled_while_running(|ctx| call(&tool, endless.clone(), ctx)), Err(CallError::Cancelled));
    assert_eq!(call(&tool, endless, cancelled_ctx()), Err(CallError::Cancelled));
}

#[test]
fn programs_that_grow_are_stopped() {
    let dir = folder(&[]);
    let tool = json_tool(&dir, 65_536, ByteSize::mib(8));
    for program in GROWING {
        let told = refused(&tool, json!({"json": null, "program": program}));
        let expected = [
            "of memory that a call may take",
            "nested too deep",
            "too deep inside each other",
            "through nulls or slices",
        ];
        assert!(expected.iter().any(|says| told.contains(says)), "{program}: {told}");
    }
    assert_eq!(yields("1 + 1", Value::Null), json!([2]), "the next call works");
}

/// What would grow beyond its bounds without end but is cheap per step.
#[test]
fn values_that_share_their_parts_are_compared_in_bounds() {
    let dir = folder(&[]);
    let tool = tool(&dir);
    let twins = "def t: reduce range(60) as $i ([1]; [., .]); ";
    for tail in ["t == t", "[t, t] | unique", "t < t", "[t] | contains([t])", "t | tostring | length"] {
        let outcome = call(&tool, json!({"json": null, "program": format!("{twins}{tail}")}), ctx_with(300));
        assert!(matches!(outcome, Err(CallError::TimedOut { .. } | CallError::Tool(_))), "{tail}: {outcome:?}");
    }
    // An error quotes a value; it must not write all of it.
    let told = refused(&tool, json!({"json": null, "program": format!("{twins} t | error")}));
    assert!(told.len() < 1_000, "{}", told.len());
}

#[test]
fn memory_is_given_back() {
    let run = || {
        let before = meter::bytes_now();
        {
            let value = json::Reader::default().one(br#"{"a":[1,2,{"b":"text"}],"c":{}}"#).unwrap();
            let Val::Obj(_) = &value else { panic!("an object") };
            let sum = (value.clone() + value).unwrap();
            let _longer = (sum * Val::object(value::Members::default())).unwrap();
            assert!(meter::bytes_now() > before);
        }
        assert_eq!(meter::bytes_now(), before);
    };
    thread::spawn(run).join().unwrap();
}

#[test]
fn texts_nested_as_deep_as_a_program_can_be_do_no_harm() {
    let dir = folder(&[]);
    let tool = tool(&dir);
    for part in [
        "(",
        "[",
        "{a:",
        "-",
        "if ",
        "try ",
        "def f: ",
        "\"\\(",
        "reduce ",
        ".a|",
        ".[",
        "1,",
        "label $x|",
        "not and ",
        ".a//",
        "f(",
        "..|",
        "1 as $x|",
        "{(",
        ". as [",
        "? // ",
        ". as {a:",
        "[]|.[0][",
        "def f: 1;",
    ] {
        let deep = part.repeat(program::PROGRAM_BYTES_MAX / part.len());
        for program in [deep.clone(), format!("{}1", &deep[..deep.len() - part.len()])] {
            // Right or wrong does not matter here: it must come back.
            let _ = call(&tool, json!({"program": program, "json": [1]}), ctx_with(20_000));
        }
    }
    let closed = format!("{}1{}", "[".repeat(3_000), "]".repeat(3_000));
    assert!(refused(&tool, json!({"json": null, "program": closed})).contains("nested too deep"));
}

#[test]
fn odd_arguments_are_answered() {
    let dir = folder(&[]);
    let tool = tool(&dir);
    for program in [
        "null | setpath([range(100000) | \"a\"]; 1)",
        "null | setpath([range(100000) | 0]; 1)",
        "[range(100000)] | delpaths([range(1000) | [.]])",
        "[limit(1000; repeat([1, 2]))] | combinations",
        "\"x\" * 1000000 | explode | implode | length",
        "{} | .[(\"a\" * 1000000)] = 1 | length",
        "[[range(300)], [range(300)]] | transpose | length",
        "0 | strftime(\"%9999999999d %Q %\")",
        "\"x\" | strptime(\"%Y\")",
        "\"2024\" | strptime(\"%Y\")",
        "1e300 | todate, gmtime",
        "-1e300 | todate",
        "nan | todate",
        "[9999, 99, 99, 99, 99, 1e300, 0, 0] | mktime",
        "[1e300, -1, 1114112, nan] | implode",
        "[-1, 55296] | implode",
        ".[nan] = 1",
        "[1] | .[-5] = 1",
        "[1] | .[1e18:], .[:-1e18], .[nan:], .[0.5:0.7]",
        "\"é\" | .[0:1e18], .[-1e18:], .[1:0]",
        "[1, 2] | .[2:1] = [9]",
        "[3, 1] | min_by(error)",
        "[1, 2] | bsearch(1.5), bsearch(\"a\")",
        "-9223372036854775807 - 1 | -., . % -1, . / -1, abs, length, . * -1",
        "9223372036854775807 + 1, 9223372036854775807 * 3",
        "1e1000, -1e1000, 0 * infinite, ldexp(1; 1e18), scalb(1; 1e18), pow(10; 1e9), frexp, significand, gamma",
        "\"a\" * nan, \"a\" * -1, \"a\" * 0.5, \"\" * 1e18",
        "\"\" / \"\", (\"aé\" / \"\"), \"abc\" - \"b\"",
        "\"aaa\" | [match(\"\"; \"g\") | .offset], gsub(\"\"; \"-\"), gsub(\"^\"; \"x\"), [scan(\"a*\")]",
        "\"é\" | gsub(\"\"; \"-\"), (@base64d?), @uri, @html, @sh, ascii_downcase",
        "\"//79\" | @base64d",
        "\"%ff\" | @urid",
        "{a: 1} | .[\"a\", \"b\"], has(\"a\"), has(0)?, to_entries, tojson, .a[0]?",
        "{(\"a\", \"b\"): (1, 2)}, {\"a b\": 1}.\"a b\", {a: {b: 1}}.a.b",
        "{(1): 2}",
        "[[1, [2]], 3] | flatten(-1), flatten(1), flatten(1e9)",
        "[1, null, true] | add",
        "[{a: 1}, {a: 0}] | unique_by(.a), group_by(.a), min_by(.a), sort_by(.a, .b)",
        "limit(-1; 1), first(empty), nth(5; range(10)), skip(-1; 1), limit(0; error)",
        "splits(1)",
        "tojson | fromjson, (\"[1\" | fromjson)",
        "(\"[\" * 100000) | fromjson",
        "[range(10; 0; -3)], [range(0; 1; 0.3)]",
        "getpath([\"a\", 0, \"b\"]), paths, getpath(5)?",
        "input_line_number? // 1",
        "@text \"a\\(1 + 1)\", @json \"x\\(\"q\")\", @csv \"\\([1, \"a\"])\"",
        "ltrimstr(1), rtrimstr(\"x\"), (\"x\" | trim, ltrim, rtrim)",
        "$__loc__",
        "label $f | break $f, 1",
        "def f: break $x; 1",
        "reduce empty as $x (0; 1), [foreach (1, 2) as [$a] (0; $a)]",
        ". as [$a, {b: $c}] | $a, $c",
        ". as [$a] ?// $a | $a",
        "to_entries, from_entries, with_entries(.)",
        "walk(if type == \"array\" then sort else . end), (.. |= .)",
        "env.HOME, $ENV.HOME, input, inputs, debug, stderr, halt_error, get_search_list, input_filename",
    ] {
        let outcome = call(&tool, json!({"program": program, "json": [1, "a", null]}), ctx_with(20_000));
        assert!(matches!(outcome, Ok(_) | Err(CallError::Tool(_))), "{program}: {outcome:?}");
    }
    assert_eq!(yields("[range(0; 3; 1)] | .[1:] = [9], .[1:2] |= map(. + 1)", Value::Null), json!([[0, 9], [0, 2, 2]]));
}
