//! What answers must not tell by the time that they take.

use std::time::{Duration, Instant};

use crate::{
    Result,
    caller::{Caller, Way, call, request},
    issuer::Issuer,
    lab::Lab,
    median, verdict,
};

/// Equal is within so much.
const OFF_MAX: f64 = 0.1;
const LEGACY: &str = "2025-11-25";

pub(crate) fn timing(lab: &Lab) -> Result<()> {
    hidden_tools(lab)?;
    foreign_sessions(lab)
}

/// Asks all of these in turn, on one connection each; the median time of each, in microseconds. All are answered with
/// `status`, and with the same bytes up to what `same` takes out.
fn medians<const N: usize>(lab: &Lab, callers: &mut [Caller; N], status: u16) -> Result<[f64; N]> {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    let until = Instant::now() + Duration::from_secs(lab.seconds);
    lab.on_load_cores(|| {
        callers.iter_mut().try_for_each(|caller| caller.call().map(drop))?; // connects
        for round in 0.. {
            if Instant::now() >= until {
                break;
            }
            // Each is as often the first as any other.
            for n in 0..N {
                let n = (n + round) % N;
                let began = Instant::now();
                let got = callers[n].call()?;
                times[n].push(began.elapsed().as_secs_f64() * 1e6);
                if got != status {
                    return Err(format!("expected {status}, got:\n{}", callers[n].reply().text()).into());
                }
            }
        }
        Ok(())
    })?;
    println!("         {} of each", times[0].len());
    Ok(times.map(median))
}

/// The median of one against that of another that has to be equal, with a third to see how well this is known.
fn equal(what: &str, [one, unknown, control]: [f64; 3]) {
    let ratio = one / unknown;
    let figure = format!("{one:.1} us, {unknown:.1} us: {ratio:.3} (two that are equal: {:.3})", control / unknown);
    verdict(&format!("{what} take equal time, within 10 %"), (ratio - 1.0).abs() <= OFF_MAX, figure);
}

/// A tool that the caller may not see, and one that is not there.
fn hidden_tools(lab: &Lab) -> Result<()> {
    let issuer = Issuer::new("ec")?;
    let mut settings = issuer.settings_with_file(&lab.folder)?;
    settings.push(r#"tools.echo.scopes_any=["secret"]"#.into());
    let server = lab.serve(None, &settings.iter().map(String::as_str).collect::<Vec<_>>())?;
    let token = issuer.token("ann")?;
    let mut callers = ["echo", "ecxo", "exho"]
        .map(|tool| Caller::new(Way::to(&server), call(Some(&token), tool, r#"{"message":"hello"}"#)));
    let statuses = callers.iter_mut().map(Caller::call).collect::<Result<Vec<_>>>()?;
    let [hidden, unknown, _] =
        callers.each_ref().map(|caller| String::from_utf8_lossy(caller.reply().body()).into_owned());
    let is_same = hidden.replace("echo", "ecxo") == unknown && statuses[0] == statuses[1];
    verdict("a hidden tool answers as one that is not there", is_same, format!("HTTP {}: {hidden:.60}…", statuses[0]));
    equal("a hidden tool and one that is not there", medians(lab, &mut callers, statuses[1])?);
    Ok(())
}

/// A session of somebody else, and one that never was.
fn foreign_sessions(lab: &Lab) -> Result<()> {
    let issuer = Issuer::new("ec")?;
    let settings = issuer.settings_with_file(&lab.folder)?;
    let server = lab.serve(None, &settings.iter().map(String::as_str).collect::<Vec<_>>())?;
    let (ann, eve) = (issuer.token("ann")?, issuer.token("eve")?);
    let initialize = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{{"name":"experiments","version":"1"}}}}}}"#
    );
    let mut owner = Caller::new(Way::to(&server), request("POST", Some(&ann), "", &initialize));
    if owner.call()? != 200 {
        return Err(format!("no session was opened:\n{}", owner.reply().text()).into());
    }
    let foreign = owner.reply().session().ok_or("initialize opened no session")?.to_owned();
    let ping = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
    let with = |token: &str, session: &str, method: &str| {
        let headers = format!("MCP-Protocol-Version: {LEGACY}\r\nMcp-Session-Id: {session}\r\n");
        request(method, Some(token), &headers, if method == "POST" { ping } else { "" })
    };
    let (unknown, other) = (altered(&foreign, 'a'), altered(&foreign, 'b'));
    for method in ["POST", "GET", "DELETE"] {
        let mut callers =
            [&foreign, &unknown, &other].map(|session| Caller::new(Way::to(&server), with(&eve, session, method)));
        callers.iter_mut().try_for_each(|caller| caller.call().map(drop))?;
        let bodies = callers.each_ref().map(|caller| (caller.reply().status(), caller.reply().body().to_vec()));
        let figure = format!("HTTP {}", bodies[0].0);
        let what = format!("{method}: a foreign session answers 404, as one that never was, byte by byte");
        verdict(&what, bodies[0] == bodies[1] && bodies[0].0 == 404, figure);
        equal(&format!("{method}: a foreign session and one that never was"), medians(lab, &mut callers, 404)?);
    }
    owner.set_request(with(&ann, &foreign, "POST"));
    let status = owner.call()?;
    verdict("its owner goes on with the session", status == 200, format!("HTTP {status}"));
    Ok(())
}

/// An id of the same shape: each letter or digit but these that have a meaning becomes another of its kind.
fn altered(id: &str, into: char) -> String {
    // The last twelve: what is before may say which shape or version it has.
    let kept = id.len().saturating_sub(12);
    let change = |(at, char): (usize, char)| match char {
        '0'..='9' | 'a'..='z' | 'A'..='Z' if at >= kept && char != into => into,
        '0'..='9' | 'a'..='z' | 'A'..='Z' if at >= kept => 'c',
        char => char,
    };
    id.char_indices().map(change).collect()
}
