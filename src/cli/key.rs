//! `bigiron key`: makes, lists and revokes API keys in their file. A key itself is printed once, when it is made.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};

use super::{SettingsArguments, fail, print};
use crate::identity::keys::{self, Moment, Record, Wanted};

const VERB: &str = "key";

const AFTER_HELP: &str = "\
Examples:
  bigiron key create --file keys.toml --subject ann
  bigiron key create --file keys.toml --subject ci --scope files:read --group build --expires 90d --note \"build server\"
  bigiron key list --file keys.toml
  bigiron key revoke --file keys.toml 1a2b3c4d
  bigiron --set auth.keys_file=keys.toml
Without --file it is the file of auth.keys_file. A running server takes a change up within about a second.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a key and print it, this once; the file has only its hash
    #[command(after_help = AFTER_HELP)]
    Create(Create),
    /// Print the keys of the file, without their secrets
    #[command(after_help = AFTER_HELP)]
    List(Place),
    /// Take a key out of the file
    #[command(after_help = AFTER_HELP)]
    Revoke(Revoke),
}

/// Where the keys are.
#[derive(Debug, Args)]
struct Place {
    /// File of the keys; without it the one of auth.keys_file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Debug, Args)]
struct Create {
    /// Who calls with it: the name that tools' `subjects` and the audit trail know
    #[arg(long, value_name = "NAME")]
    subject: String,

    /// A scope that it grants; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", value_parser = scope)]
    scopes: Vec<String>,

    /// A group that its subject is in; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,

    /// Until when it is good: 2030-01-31, 2030-01-31T12:00:00Z, or from now on, such as 12h, 90d, 2w, 1y; for ever without
    ///
    /// A date is its beginning, in UTC. A year is 365 days.
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<Moment>,

    /// A line for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Revoke {
    /// The key's id: the eight digits after bi_
    id: String,

    #[command(flatten)]
    place: Place,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    match arguments.verb {
        Verb::Create(wish) => wish.place.with(|file| {
            let wanted = Wanted {
                subject: wish.subject,
                scopes: wish.scopes,
                groups: wish.groups,
                expires: wish.expires,
                note: wish.note,
            };
            let (record, key) = keys::create(file, wanted, SystemTime::now())?;
            // The key alone goes to standard output, so that it can be handed on as it is.
            let about = format!("made the key {} for {}; it is shown this once", record.id, record.subject);
            let _ = writeln!(io::stderr().lock(), "{about}");
            Ok(format!("{}\n", key.expose()))
        }),
        Verb::List(place) => place.with(|file| Ok(table(&keys::list(file)?))),
        Verb::Revoke(wish) => wish.place.with(|file| {
            // Who has the whole key at hand may give it.
            let id = wish.id.strip_prefix(keys::PREFIX).and_then(|rest| rest.split('_').next()).unwrap_or(&wish.id);
            let record = keys::revoke(file, id)?;
            Ok(format!("revoked the key {} of {}\n", record.id, record.subject))
        }),
    }
}

impl Place {
    fn with(self, act: impl FnOnce(&std::path::Path) -> Result<String, String>) -> ExitCode {
        let file = match self.file {
            Some(file) => file,
            None => match self.settings.load() {
                Ok(loaded) if loaded.tuning.auth.keys_file.is_empty() => {
                    return fail(VERB, "no file of keys is named; say --file FILE, or set auth.keys_file");
                }
                Ok(loaded) => loaded.tuning.auth.keys_file.into(),
                Err(code) => return code,
            },
        };
        match act(&file) {
            Ok(text) => print(&text),
            Err(message) => fail(VERB, &message),
        }
    }
}

/// One scope. A comma may stand in one, and here is meant to stand between two.
fn scope(text: &str) -> Result<String, String> {
    if !text.contains(',') {
        return Ok(text.to_owned());
    }
    let each: Vec<String> = text.split(',').map(|scope| format!("--scope {scope}")).collect();
    Err(format!("one scope each; write {}", each.join(" ")))
}

/// A moment, a date, or a time from now on.
fn expiry(text: &str) -> Result<Moment, String> {
    const DAY_S: u64 = 24 * 60 * 60;
    let wrong = || {
        format!(
            "{text:?} is no time; write 2030-01-31, 2030-01-31T12:00:00Z, or from now on such as 12h, 90d, 2w or 1y"
        )
    };
    let unit_s = match text.chars().last() {
        Some('y') => 365 * DAY_S,
        Some('w') => 7 * DAY_S,
        Some('d') => DAY_S,
        Some('h') => 60 * 60,
        Some('m') => 60,
        _ => return Moment::parse(text).or_else(|_| Moment::parse(&format!("{text}T00:00:00Z"))).map_err(|_| wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let wait = number.checked_mul(unit_s).map(Duration::from_secs).ok_or_else(wrong)?;
    Moment::from_time(SystemTime::now().checked_add(wait).ok_or_else(wrong)?).map_err(|_| wrong())
}

fn table(records: &[Record]) -> String {
    if records.is_empty() {
        return "no keys\n".into();
    }
    let mut out = String::new();
    for record in records {
        let _ = write!(out, "{}  {}  created {}", record.id, record.subject, record.created);
        match record.expires {
            Some(at) if at.time() <= SystemTime::now() => {
                let _ = write!(out, "  EXPIRED {at}");
            }
            Some(at) => {
                let _ = write!(out, "  expires {at}");
            }
            None => out.push_str("  never expires"),
        }
        for (name, words) in [("scopes", &record.scopes), ("groups", &record.groups)] {
            if !words.is_empty() {
                let _ = write!(out, "  {name} {}", words.join(","));
            }
        }
        if !record.note.is_empty() {
            let _ = write!(out, "  # {}", record.note);
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_from_now_on() {
        assert_eq!(expiry("2030-01-31T12:00:00Z").map(|at| at.to_string()).as_deref(), Ok("2030-01-31T12:00:00Z"));
        let day = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        for text in ["1d", "24h", "1440m"] {
            let at = expiry(text).expect(text).time();
            let apart = day.duration_since(at).unwrap_or_else(|over| over.duration());
            assert!(apart < Duration::from_secs(60), "{text}");
        }
        let at = |text| expiry(text).map(|at| at.to_string());
        assert_eq!(at("2030-01-31").as_deref(), Ok("2030-01-31T00:00:00Z"));
        let in_a_year = |text: &str| expiry(text).expect(text).time();
        for (weeks, days) in [("1w", "7d"), ("1y", "365d"), ("52w", "364d")] {
            let apart = in_a_year(days).duration_since(in_a_year(weeks)).unwrap_or_else(|over| over.duration());
            assert!(apart < Duration::from_secs(60), "{weeks}");
        }
        assert_eq!(scope("a:b"), Ok("a:b".into()));
        assert!(scope("a,b").is_err_and(|why| why.contains("write --scope a --scope b")));
        for text in [
            "",
            "d",
            "-1d",
            "1x",
            "2030-02-30",
            "2030",
            "tomorrow",
            "99999999999999999999d",
            "18446744073709551615d",
            "é",
        ] {
            assert!(expiry(text).is_err_and(|why| why.contains("is no time")), "{text}");
        }
    }
}
