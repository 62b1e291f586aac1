//! Which requests are plain: those for our endpoint that stand on the wire in the form in which practically all clients
//! send them, so that one look at the head says all that HTTP has to say of them. Here is that look, by the parser that
//! hyper uses too. What is not plain is not wrong: it is hyper's.

use std::mem::MaybeUninit;

use httparse::{EMPTY_HEADER, Header, ParserConfig, Status};
use hyper::Method;

use crate::front::{
    came::Plain,
    headers::{Headers, Spot, Spots},
};

/// So many headers are read; a request with more is hyper's, whatever the settings allow.
const HEADERS_MAX: usize = 100;
/// A longer head is hyper's. Within it, places are numbers of 16 bits.
const HEAD_BYTES_MAX: usize = u16::MAX as usize;

/// What the first bytes of a request are.
pub(super) enum Look {
    /// A plain request, how long its body is, and what came after it.
    Plain { plain: Plain, body_bytes: usize, after: Vec<u8> },
    /// The beginning of a head: as it came.
    Part(Vec<u8>),
    /// Another request: as it came.
    Other(Vec<u8>),
}

/// What a head says of its body and of the connection.
#[derive(Default)]
struct Said {
    body_bytes: Option<usize>,
    is_odd: bool,
}

impl Said {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"content-length" => {
                self.is_odd |= self.body_bytes.is_some();
                self.body_bytes = read_length(value);
                self.is_odd |= self.body_bytes.is_none();
            }
            b"connection" => self.is_odd |= !value.eq_ignore_ascii_case(b"keep-alive"),
            b"transfer-encoding" | b"expect" | b"upgrade" => self.is_odd = true,
            _ => {}
        }
    }
}

/// Looks at what has come. A body may still be on its way.
pub(super) fn look(mut bytes: Vec<u8>, endpoint: &str, headers_max: usize) -> Look {
    let found = match read(&bytes, endpoint, headers_max) {
        Ok(found) => found,
        Err(NotPlain::Yet) => return Look::Part(bytes),
        Err(NotPlain::AtAll) => return Look::Other(bytes),
    };
    let Found { head_bytes, body_bytes, method, path, spots } = found;
    let end = head_bytes + body_bytes;
    let after = if bytes.len() > end { bytes.split_off(end) } else { Vec::new() };
    let is_whole = bytes.len() == end;
    Look::Plain { plain: Plain { bytes, head_bytes, method, path, spots, is_whole }, body_bytes, after }
}

/// What was found in a plain head.
struct Found {
    head_bytes: usize,
    body_bytes: usize,
    method: Method,
    path: Spot,
    spots: Spots,
}

enum NotPlain {
    /// The head is not whole, and what there is of it is in order.
    Yet,
    AtAll,
}

fn read(bytes: &[u8], endpoint: &str, headers_max: usize) -> Result<Found, NotPlain> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, &mut room);
    let head_bytes = match parsed {
        Ok(Status::Complete(head_bytes)) => head_bytes,
        Ok(Status::Partial) => return Err(NotPlain::Yet),
        Err(_) => return Err(NotPlain::AtAll),
    };
    plain(&bytes[..head_bytes.min(bytes.len())], &request, endpoint, headers_max).ok_or(NotPlain::AtAll)
}

/// What was found in a whole head, if it is plain.
fn plain<'a>(head: &'a [u8], request: &httparse::Request<'_, 'a>, endpoint: &str, headers_max: usize) -> Option<Found> {
    if request.version != Some(1) || head.len() > HEAD_BYTES_MAX || request.headers.len() > headers_max {
        return None;
    }
    let path = request.path.filter(|path| *path == endpoint)?;
    let (method, may_have_body) = match request.method? {
        "POST" => (Method::POST, true),
        "GET" => (Method::GET, false),
        "DELETE" => (Method::DELETE, false),
        _ => return None,
    };
    let mut said = Said::default();
    let headers = Headers::scan_wire(head, request.headers, |name, value| said.add(name, value));
    let body_bytes = match said.body_bytes {
        Some(body_bytes) if may_have_body || body_bytes == 0 => body_bytes,
        None if !may_have_body => 0,
        _ => return None,
    };
    if said.is_odd {
        return None;
    }
    let (path, spots) = (Spot::of(path.as_bytes(), head), headers.spots(head));
    Some(Found { head_bytes: head.len(), body_bytes, method, path, spots })
}

/// Digits and nothing else, and not so many that they could be no length.
fn read_length(value: &[u8]) -> Option<usize> {
    const DIGITS_MAX: usize = 12;
    if value.is_empty() || value.len() > DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Shows each line of a head that has been parsed once: for the rare cases that need those that nobody noted.
pub(crate) fn each_line<'a>(head: &'a [u8], mut show: impl FnMut(Header<'a>)) {
    let mut room = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut room);
    if request.parse(head).is_ok() {
        request.headers.iter().for_each(|line| show(*line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::head::Field;

    const HEAD: &str = "POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nAccept: */*\r\n\r\n";

    fn look_at(text: &str) -> Look {
        look(text.as_bytes().to_vec(), "/mcp", 10)
    }

    #[test]
    fn a_plain_request_is_found_with_what_comes_after_it() {
        let Look::Plain { plain, body_bytes, after } = look_at(&format!("{HEAD}{{}}POST")) else {
            panic!("it is plain")
        };
        assert_eq!(
            (plain.method.as_str(), body_bytes, after.as_slice(), plain.is_whole),
            ("POST", 2, &b"POST"[..], true)
        );
        let came = crate::front::came::Came::Plain(plain);
        assert_eq!((came.path(), came.target_bytes(), came.body()), ("/mcp", 4, Some(&b"{}"[..])));
        let headers = came.headers();
        assert_eq!(headers.host(), Field::Is(b"a"));
        assert_eq!(headers.content_length(), Field::Is(b"2"));
        assert_eq!(headers.origin(), Field::Absent);
        assert_eq!(headers.lines("accept"), [b"*/*"]);
        let lines = HEAD.len() - "POST /mcp HTTP/1.1\r\n".len() - "\r\n".len();
        assert_eq!(headers.bytes, lines);
        let parts = came.into_parts();
        assert_eq!(
            (parts.uri.path(), parts.headers.len(), &parts.headers["host"]),
            ("/mcp", 3, &"a".parse().expect("a value"))
        );
    }

    #[test]
    fn a_body_may_be_on_its_way() {
        for (text, missing) in [(HEAD.to_owned(), 2), (format!("{HEAD}{{"), 1)] {
            let Look::Plain { plain, body_bytes, after } = look_at(&text) else { panic!("it is plain") };
            assert_eq!((body_bytes, plain.bytes.len() - plain.head_bytes, after.len()), (2, 2 - missing, 0));
            assert!(!plain.is_whole);
            assert_eq!(crate::front::came::Came::Plain(plain).body(), None);
        }
    }

    #[test]
    fn a_head_may_be_on_its_way() {
        for length in 0..HEAD.len() {
            match look_at(&HEAD[..length]) {
                Look::Part(bytes) => assert_eq!(bytes, &HEAD.as_bytes()[..length]),
                Look::Other(_) | Look::Plain { .. } => panic!("{length} bytes are a part"),
            }
        }
    }

    #[test]
    fn headers_that_are_said_twice_are_found_twice() {
        let text = HEAD.replace("Host: a", "Host: a\r\nhOsT: b\r\norigin: ");
        let Look::Plain { plain, .. } = look_at(&text) else { panic!("it is plain") };
        let came = crate::front::came::Came::Plain(plain);
        let headers = came.headers();
        assert_eq!((headers.host(), headers.origin()), (Field::Repeated, Field::Is(b"")));
        assert_eq!(headers.lines("host"), [b"a", b"b"]);
    }

    #[test]
    fn what_is_not_plain_is_left_as_it_came() {
        let with = |line: &str| HEAD.replace("Accept: */*", line);
        let instead = |from: &str, to: &str| HEAD.replace(from, to);
        for text in [
            "PRI * HTTP/2.0\r\n\r\n".into(),
            instead("POST", "PUT"),
            instead("POST", "post"),
            instead("POST", "HEAD"),
            instead("POST", "OPTIONS"),
            instead("POST", "GET"), // with a body
            instead("POST", "DELETE"),
            instead("/mcp", "/mcp?a"),
            instead("/mcp", "/mcp/"),
            instead("/mcp", "/"),
            instead("/mcp", "http://a/mcp"),
            instead("HTTP/1.1", "HTTP/1.0"),
            instead("Content-Length: 2\r\n", ""),
            instead("Length: 2", "Length: "),
            instead("Length: 2", "Length: +2"),
            instead("Length: 2", "Length: 2, 2"),
            instead("Length: 2", "Length: 0x2"),
            instead("Length: 2", "Length: 9999999999999"),
            instead("Length: 2", "Length: 2\r\nContent-Length: 2"),
            with("Transfer-Encoding: chunked"),
            with("TRANSFER-ENCODING: identity"),
            with("Expect: 100-continue"),
            with("Upgrade: h2c"),
            with("Connection: close"),
            with("Connection: keep-alive, Upgrade"),
            with(" folded: x"),
            with("a b: x"),
            with("a: \0"),
            with(&"a: b\r\n".repeat(9)),
        ] {
            match look_at(&text) {
                Look::Other(bytes) => assert_eq!(bytes, text.as_bytes()),
                Look::Part(_) | Look::Plain { .. } => panic!("{text:?} is not plain"),
            }
        }
        for text in [with("Connection: Keep-Alive"), with(&"a: b\r\n".repeat(7)), instead("Length: 2", "Length:  2 ")] {
            assert!(matches!(look_at(&text), Look::Plain { .. }), "{text:?} is plain");
        }
        for (method, length) in [("GET", "0"), ("DELETE", "0")] {
            let text = HEAD.replace("POST", method).replace("Length: 2", &format!("Length: {length}"));
            assert!(matches!(look_at(&text), Look::Plain { .. }), "{text:?} is plain");
        }
    }

    #[test]
    fn a_long_head_is_not_plain() {
        let text = HEAD.replace("Accept: */*", &format!("a: {}", "b".repeat(HEAD_BYTES_MAX)));
        assert!(matches!(look_at(&text), Look::Other(_)));
    }
}
