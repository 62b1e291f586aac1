//! Group H: what a request asks of HTTP. Its body's size and form, the answer's form, its method, and who may call.

use super::{
    Row,
    place::{
        Kind::{OwnTools, Program},
        PAGE, Place,
    },
    row,
    wire::{FORBIDDEN, GOOD, Request, Want, echo, first, message_of, one},
};
use crate::support::{Client, PATIENCE};
use Want::{End, Refusal, RefusalThenEnd, Text};

const MIB: usize = 1 << 20;

pub(super) const ROWS: &[Row] = &[
    row("H25", "Expect: 100-continue", &[Program, OwnTools], h25),
    row("H26", "Content-Length of 5 GiB", &[Program, OwnTools], h26),
    row("H27", "bodies at, over and far over the limit", &[Program, OwnTools], h27),
    row("H28", "compressed bodies", &[Program, OwnTools], h28),
    row("H30", "Accept", &[Program, OwnTools], h30),
    row("H31", "Content-Type", &[Program, OwnTools], h31),
    row("H32", "GET and DELETE of the new revision", &[Program, OwnTools], h32),
    row("H33", "preflights of pages", &[Program, OwnTools], h33),
];

fn h25(place: &Place) {
    let expecting = Request::forbidden().body("").with("Expect: 100-continue");
    let over = expecting.with(format!("Content-Length: {}", 2 * MIB));
    place.case("over the limit", &over, Refusal(413, -32600));
    place.noted("within the limit", || {
        let body = echo(GOOD).to_string();
        let head =
            Request::good().body("").with("Expect: 100-continue").with(format!("Content-Length: {}", body.len()));
        let mut client = Client::connect(place.addr);
        client.send(&head.bytes());
        let asked = client.receive().map(|r| r.status);
        client.send(body.as_bytes());
        let answer = client.receive().map(|r| r.text());
        if (asked, answer.as_deref()) == (Some(100), Some(GOOD)) {
            Ok(())
        } else {
            Err(format!("{asked:?} {answer:?}"))
        }
    });
}

fn h26(place: &Place) {
    let request = Request::forbidden().body("").with("Content-Length: 5368709120");
    place.case("nothing of it sent", &request, RefusalThenEnd(413, -32600));
}

fn h27(place: &Place) {
    let body = |bytes: usize| {
        let mut body = echo(if bytes > MIB { FORBIDDEN } else { GOOD }).to_string();
        body.push_str(&" ".repeat(bytes - body.len()));
        Request::good().body(body)
    };
    place.case("1 MiB", &body(MIB), Text(GOOD));
    place.case("1 MiB, chunked", &body(MIB).chunked(), Text(GOOD));
    place.case("1 MiB + 1", &body(MIB + 1), End(&[413]));
    place.case("1 MiB + 1, chunked", &body(MIB + 1).chunked(), End(&[413]));
    let request = Request::forbidden().body("").with(format!("Content-Length: {}", 100 * MIB));
    place.case("100 MiB announced", &request, RefusalThenEnd(413, -32600));
    place.noted("100 MiB, chunked", || {
        let mut client = Client::connect(place.addr);
        client.set_patience(PATIENCE);
        client.send(&Request::forbidden().body("").with("Transfer-Encoding: chunked").bytes());
        let chunk = [b"100000\r\n".to_vec(), vec![b' '; MIB], b"\r\n".to_vec()].concat();
        let taken = (0..100).take_while(|_| client.offer(&chunk)).count();
        let status = client.receive().map(|r| r.status);
        let right = taken < 100 && status == Some(413) && client.receive().is_none() && client.is_closed();
        if right { Ok(()) } else { Err(format!("{taken} MiB were taken, then {status:?}")) }
    });
}

fn h28(place: &Place) {
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        place.noted(coding, || {
            let request = Request::forbidden().with(format!("Content-Encoding: {coding}"));
            let heard = one(place.addr, &request.bytes());
            let response = first(&heard)?;
            let told = (response.status, response.header("accept-encoding"));
            if told == (415, Some("identity")) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }
    place.case("identity", &Request::good().with("Content-Encoding: identity"), Text(GOOD));
}

fn h30(place: &Place) {
    for accept in ["text/html", "image/png, text/html;q=0.5", "application/json;q=0, text/event-stream;q=0", "nonsense"]
    {
        place.case(accept, &Request::forbidden().but("Accept", accept), Refusal(406, -32600));
    }
    for (accept, form) in [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*;q=0.1", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, application/json;q=0", "text/event-stream"),
    ] {
        place.noted(accept, || {
            let heard = one(place.addr, &Request::good().but("Accept", accept).bytes());
            let response = first(&heard)?;
            let message = message_of(response)?;
            let right =
                response.header("content-type") == Some(form) && message["result"]["content"][0]["text"] == GOOD;
            if right { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }
    place.case("none", &Request::good().without("Accept"), Text(GOOD));
}

fn h31(place: &Place) {
    for kind in
        ["text/plain", "application/jsonp", "application/x-www-form-urlencoded", "multipart/form-data", "json", ""]
    {
        place.case(kind, &Request::forbidden().but("Content-Type", kind), Refusal(415, -32600));
    }
    place.case("none", &Request::forbidden().without("Content-Type"), Refusal(415, -32600));
    for second in ["application/json", "text/plain"] {
        let twice = Request::forbidden().with(format!("Content-Type: {second}"));
        place.case(&format!("a second one, {second}"), &twice, Refusal(400, -32600));
    }
    place.case("with a charset", &Request::good().but("Content-Type", "Application/JSON; charset=utf-8"), Text(GOOD));
}

fn h32(place: &Place) {
    for method in ["GET", "DELETE", "PUT", "PATCH", "TRACE", "BREW"] {
        place.noted(method, || {
            let request = Request::bare(&format!("{method} /mcp HTTP/1.1")).with("MCP-Protocol-Version: 2026-07-28");
            let request = request.with("Mcp-Session-Id: 0123456789abcdef").with("Accept: text/event-stream");
            let heard = one(place.addr, &request.bytes());
            let response = first(&heard)?;
            let told = (response.status, response.header("allow"), response.code());
            if told == (405, Some("POST"), Some(-32600)) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }
}

fn h33(place: &Place) {
    let ask = |origin: &str| {
        let request = Request::bare("OPTIONS /mcp HTTP/1.1").with(format!("Origin: {origin}"));
        let request = request.with("Access-Control-Request-Method: POST");
        request.with("Access-Control-Request-Headers: content-type, mcp-method, x-other")
    };
    place.noted("the page that may", || {
        let heard = one(place.addr, &ask(PAGE).bytes());
        let response = first(&heard)?;
        let headers = response.header("access-control-allow-headers").unwrap_or_default();
        let told = (response.status, response.header("access-control-allow-origin"));
        let right = told == (204, Some(PAGE)) && headers.contains("mcp-method") && !headers.contains("x-other");
        if right { Ok(()) } else { Err(format!("{response:?}")) }
    });
    for origin in ["https://evil.example", "null", "https://page.example.evil.example", "http://page.example"] {
        place.noted(origin, || {
            for request in [ask(origin), Request::forbidden().with(format!("Origin: {origin}"))] {
                let heard = one(place.addr, &request.bytes());
                let response = first(&heard)?;
                let cors = response.headers.iter().any(|(name, _)| name.to_lowercase().starts_with("access-control"));
                if response.status != 403 || cors {
                    return Err(format!("{response:?}"));
                }
            }
            Ok(())
        });
    }
    place.noted("a call of the page that may", || {
        let heard = one(place.addr, &Request::good().with(format!("Origin: {PAGE}")).bytes());
        let response = first(&heard)?;
        let told = (response.text() == GOOD, response.header("access-control-allow-origin"));
        let credentials = response.header("access-control-allow-credentials");
        if told == (true, Some(PAGE)) && credentials.is_none() { Ok(()) } else { Err(format!("{response:?}")) }
    });
}
