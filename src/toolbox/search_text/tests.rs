//! What `search_text` promises: the right hits, every hit once, and an end when nobody waits.

use std::{fs::File, io::Read};

use serde_json::{Value, json};

use super::{page::Stoppable, *};
use crate::toolbox::tests::{
    call, cancelled_ctx, cancelled_while_running, ctx, folder, listening_ctx, refused, root_of,
};

fn tool(dir: &tempfile::TempDir, output_bytes_max: usize) -> Tool {
    SearchText { root: root_of(dir), output_bytes_max }.tool()
}

/// `path:line:text` of each hit.
fn lines(found: &Value) -> Vec<String> {
    let hits = found["hits"].as_array().expect("hits");
    hits.iter()
        .map(|h| format!("{}:{}:{}", h["path"].as_str().unwrap(), h["line"], h["text"].as_str().unwrap()))
        .collect()
}

#[test]
fn hits_are_what_stands_there() {
    let dir = folder(&[
        (".gitignore", b"ignored.txt\n"),
        ("ignored.txt", b"needle"),
        (".hidden", b"needle"),
        ("a.txt", b"one\r\nNeedle two\r\nthree (x)\r\n"),
        ("b/c.rs", "ä needle\nno\nlast needle".as_bytes()),
        ("binary", b"needle\0needle"),
        ("latin1.txt", b"needle \xE9\n"),
    ]);
    let tool = tool(&dir, 65_536);
    let ask = |arguments: Value| lines(&call(&tool, arguments, ctx()).expect("finds"));
    let all = ["a.txt:2:Needle two", "b/c.rs:1:ä needle", "b/c.rs:3:last needle", "latin1.txt:1:needle \u{FFFD}"];
    assert_eq!(ask(json!({"pattern": "needle"})), all);
    assert_eq!(ask(json!({"pattern": "Needle"})), all[..1]);
    assert_eq!(ask(json!({"pattern": "needle", "case": "sensitive"})), all[1..]);
    assert_eq!(ask(json!({"pattern": "NEEDLE", "case": "insensitive"})), all);
    assert_eq!(ask(json!({"pattern": "(x)", "literal": true})), ["a.txt:3:three (x)"]);
    assert_eq!(ask(json!({"pattern": "^last", "path": "b/c.rs"})), ["b/c.rs:3:last needle"]);
    assert_eq!(ask(json!({"pattern": "needle", "path": "b"})), all[1..3]);
    assert_eq!(ask(json!({"pattern": "needle", "globs": ["*.rs"]})), all[1..3]);
    assert_eq!(ask(json!({"pattern": "needle", "globs": ["!*.rs", "!latin1*"]})), all[..1]);
    assert_eq!(ask(json!({"pattern": "needle", "include_ignored": true})).len(), 6);
    assert_eq!(ask(json!({"pattern": "two$|three"})), ["a.txt:2:Needle two", "a.txt:3:three (x)"]);
}

#[test]
fn context_belongs_to_its_hit() {
    let dir = folder(&[("f", b"1\n2\nhit a\n4\nhit b\n6\n7\n8\nhit c\n")]);
    let found = call(&tool(&dir, 65_536), json!({"pattern": "hit", "context": 1}), ctx()).expect("finds");
    assert_eq!(found["hits"][0]["before"], json!(["2"]));
    assert_eq!(found["hits"][0]["after"], json!(["4"]));
    assert_eq!(found["hits"][1].get("before"), None, "told once, after the hit before");
    assert_eq!(found["hits"][1]["after"], json!(["6"]));
    assert_eq!(found["hits"][2]["before"], json!(["8"]));
    let found = call(&tool(&dir, 65_536), json!({"pattern": "hit", "context": 1, "skip": 1}), ctx()).expect("finds");
    assert_eq!(found["hits"][0]["text"], "hit b");
    assert_eq!(found["hits"][0]["after"], json!(["6"]));
}

#[test]
fn pages_hold_every_hit_once() {
    let many: Vec<_> = (0..200).map(|n| format!("d{}/f{n}.txt", n % 7)).collect();
    let content = "a \u{1}\"hit\"\nmiss\n".repeat(5);
    let files: Vec<_> = many.iter().map(|path| (path.as_str(), content.as_bytes())).collect();
    let dir = folder(&files);
    let whole = call(&tool(&dir, 1 << 20), json!({"pattern": "hit", "hits_max": 1000}), ctx()).expect("finds");
    let whole = lines(&whole);
    assert_eq!(whole.len(), 1000);
    for (bytes, hits_max) in [(4_096, 1000), (65_536, 7), (8_192, 100)] {
        let tool = tool(&dir, bytes);
        let (mut collected, mut skip) = (Vec::new(), 0);
        loop {
            let arguments = json!({"pattern": "hit", "hits_max": hits_max, "skip": skip, "context": 1});
            let found = call(&tool, arguments, ctx()).expect("finds");
            assert!(found.to_string().len() <= bytes, "{} > {bytes}", found.to_string().len());
            collected.extend(lines(&found));
            if found["more"] == false {
                assert_eq!(found.get("next_skip"), None);
                break;
            }
            skip = found["next_skip"].as_u64().expect("a place to go on");
            assert_eq!(skip, collected.len() as u64);
        }
        assert_eq!(collected, whole, "{bytes} bytes, {hits_max} hits");
    }
}

#[test]
fn long_lines_show_their_match() {
    let line = format!("{}needle{}", "é".repeat(5_000), "ü".repeat(5_000));
    let dir = folder(&[("min.js", line.as_bytes())]);
    let found = call(&tool(&dir, 65_536), json!({"pattern": "needle"}), ctx()).expect("finds");
    let text = found["hits"][0]["text"].as_str().unwrap();
    assert!(
        text.starts_with("… é") && text.contains("éneedleü") && text.ends_with("ü … [line of 20006 bytes]"),
        "{text}"
    );
    assert!(!text.contains('\u{FFFD}') && text.len() < 500, "{text}");
}

#[test]
fn a_line_too_long_to_hold_is_said() {
    let mut content = vec![b'x'; LINE_HELD_BYTES_MAX + 2];
    content.extend_from_slice(b"needle");
    let dir = folder(&[("long", &content), ("short", b"needle")]);
    let found = call(&tool(&dir, 65_536), json!({"pattern": "needle"}), ctx()).expect("finds");
    assert_eq!(lines(&found), ["short:1:needle"]);
    assert!(found["note"].as_str().unwrap().contains("1 files"), "{found}");
}

#[test]
fn what_cannot_be_searched_is_explained() {
    let dir = folder(&[("f", b"x")]);
    let tool = tool(&dir, 65_536);
    assert!(refused(&tool, json!({"pattern": "a("})).contains("literal"));
    assert!(refused(&tool, json!({"pattern": "(?=a)b"})).contains("look-around"));
    assert!(refused(&tool, json!({"pattern": "a\nb"})).contains("within one line"));
    assert!(refused(&tool, json!({"pattern": "(\\w{1000}){1000}"})).contains("cannot be used"));
    assert!(refused(&tool, json!({"pattern": "x".repeat(PATTERN_BYTES_MAX + 1)})).contains("4096"));
    assert!(refused(&tool, json!({"pattern": "x", "path": "../x"})).contains("relative to the served folder"));
    assert!(refused(&tool, json!({"pattern": "x", "path": "g"})).contains("no file"));
    assert!(refused(&tool, json!({"pattern": "x", "globs": ["["]})).contains("not a glob"));
}

#[test]
fn a_search_stops_when_nobody_waits() {
    // A file of 1 TiB without content: reading it through takes minutes.
    let dir = folder(&[]);
    File::create(dir.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    std::fs::write(dir.path().join("a"), "x\n").unwrap();
    let tool = tool(&dir, 65_536);
    assert_eq!(call(&tool, json!({"pattern": "x"}), cancelled_ctx()), Err(CallError::Cancelled));
    // NUL bytes end a search as binary, so the long file is one of line ends.
    let reader = |ctx: Ctx| {
        let matcher = RegexMatcher::new("needle").unwrap();
        let mut lines = 0_u64;
        let sink = grep_searcher::sinks::UTF8(|_, _| {
            lines += 1;
            Ok(true)
        });
        struct Endless<'a>(Stoppable<'a>);
        impl Read for Endless<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let _ = self.0.read(&mut [0])?;
                buffer.fill(b'\n');
                Ok(buffer.len())
            }
        }
        let file = File::open("/dev/zero").unwrap();
        searcher(0).search_reader(&matcher, Endless(Stoppable { file, ctx: &ctx }), sink)
    };
    assert!(cancelled_while_running(reader).is_err());
}

#[test]
fn progress_is_told() {
    let (ctx, outbox) = listening_ctx();
    let mut tally = Tally::new(&ctx);
    tally.told -= PROGRESS_EVERY;
    tally.add(Ok(()), 3);
    let told = format!("{:?}", outbox.close());
    assert!(told.contains("1 files searched, 3 hits"), "{told}");
}
