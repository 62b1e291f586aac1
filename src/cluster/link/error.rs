//! What may come of a command, in the few words that callers decide by: whether Redis was asked, whether it may have
//! done it, and whether asking again helps.

use std::fmt;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why there is no answer of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// Redis is not there; it was not asked, and nothing was done.
    Away,
    /// As many commands are under way as may be; it was not asked, and nothing was done.
    Crowded,
    /// No answer in time, or the connection broke: it may have been done, and may not.
    Unknown(&'static str),
    /// Redis said no, and nothing was done.
    Refused(Refused),
    /// The answer is none that was expected: another type, another form.
    Odd(String),
}

/// What Redis says no with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its memory is full.
    Full,
    /// It is a replica, has too few replicas, or cannot save what is written.
    ReadOnly,
    /// It is loading, has no master, runs a long script, or its cluster is down: later it may.
    NotNow,
    /// We may not: the password, or the rights of the user.
    Denied,
    /// The key holds something of another type.
    WrongType,
    /// Anything else, in its own words.
    Other(String),
}

impl LinkError {
    /// Whether it can be taken as the end of the connection.
    pub(super) fn of(error: &RedisError) -> Self {
        let refused = |refused| Self::Refused(refused);
        match error.kind() {
            ErrorKind::Io | ErrorKind::ClusterConnectionNotFound if error.is_timeout() => {
                Self::Unknown("no answer in time")
            }
            ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => Self::Unknown("the connection broke"),
            ErrorKind::AuthenticationFailed => refused(Refused::Denied),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Odd(plain(error)),
            ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::EmptySentinelList => refused(Refused::NotNow),
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask => refused(Refused::NotNow),
                ServerErrorKind::ReadOnly => refused(Refused::ReadOnly),
                ServerErrorKind::NoPerm => refused(Refused::Denied),
                // A script's failure is told as an error of its own, with what the command within it met in the text.
                _ => refused(of_text(error)),
            },
            _ => refused(of_text(error)),
        }
    }

    /// Whether Redis may answer the next one, and this one says nothing about it.
    pub(super) fn is_of_redis_itself(&self) -> bool {
        matches!(self, Self::Refused(Refused::NotNow) | Self::Unknown(_))
    }
}

fn of_text(error: &RedisError) -> Refused {
    match error.code() {
        Some("OOM") => Refused::Full,
        Some("READONLY" | "NOREPLICAS" | "MISCONF") => Refused::ReadOnly,
        Some("LOADING" | "MASTERDOWN" | "BUSY" | "CLUSTERDOWN" | "TRYAGAIN" | "UNBLOCKED") => Refused::NotNow,
        Some("NOPERM" | "NOAUTH" | "WRONGPASS") => Refused::Denied,
        Some("WRONGTYPE") => Refused::WrongType,
        _ => {
            let text = plain(error);
            match text.as_str() {
                text if text.contains("OOM command not allowed") => Refused::Full,
                text if text.contains("WRONGTYPE") => Refused::WrongType,
                text if text.contains("can't write against a read only replica") => Refused::ReadOnly,
                text if text.contains("MISCONF ") => Refused::ReadOnly,
                text if text.contains("The user executing the script can't") => Refused::Denied,
                _ => Refused::Other(text),
            }
        }
    }
}

/// An error of Redis on one line, not endless. It never holds what was sent.
pub(super) fn plain(error: &RedisError) -> String {
    const SHOWN_MAX: usize = 200;
    error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_MAX).collect()
}

impl Refused {
    /// Whether the same may be taken a little later: by another master, or when there is room again.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(self, Self::Full | Self::ReadOnly | Self::NotNow)
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away => f.write_str("Redis is away"),
            Self::Crowded => f.write_str("too many commands to Redis are under way (cluster.in_flight_max)"),
            Self::Unknown(why) => write!(f, "Redis: {why}; it may have been done"),
            Self::Refused(refused) => write!(f, "Redis refused: {refused}"),
            Self::Odd(what) => write!(f, "Redis answered something unexpected: {what}"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "its memory is full (OOM)",
            Self::ReadOnly => "it takes no writes (READONLY, NOREPLICAS, MISCONF)",
            Self::NotNow => "not now (loading, busy, or without a master)",
            Self::Denied => "the password is wrong, or the user may not do this (WRONGPASS, NOPERM)",
            Self::WrongType => "the key holds another type (WRONGTYPE)",
            Self::Other(text) => text,
        })
    }
}

impl std::error::Error for LinkError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, text: &str) -> LinkError {
        let reply = format!("-{code} {text}\r\n");
        let value = redis::parse_redis_value(reply.as_bytes()).expect("RESP");
        LinkError::of(&value.extract_error().expect_err("an error"))
    }

    #[test]
    fn what_redis_says_is_one_of_a_few_words() {
        for (code, refused) in [
            ("OOM", Refused::Full),
            ("READONLY", Refused::ReadOnly),
            ("NOREPLICAS", Refused::ReadOnly),
            ("MISCONF", Refused::ReadOnly),
            ("LOADING", Refused::NotNow),
            ("MASTERDOWN", Refused::NotNow),
            ("BUSY", Refused::NotNow),
            ("CLUSTERDOWN", Refused::NotNow),
            ("TRYAGAIN", Refused::NotNow),
            ("NOPERM", Refused::Denied),
            ("NOAUTH", Refused::Denied),
            ("WRONGPASS", Refused::Denied),
            ("WRONGTYPE", Refused::WrongType),
        ] {
            assert_eq!(of(code, "some text"), LinkError::Refused(refused), "{code}");
        }
        let script = "Error running script: @user_script: 1: OOM command not allowed when used memory > 'maxmemory'.";
        assert_eq!(of("ERR", script), LinkError::Refused(Refused::Full));
        let script = "Error running script: @user_script: 1: -MISCONF Redis is configured to save RDB snapshots, but it's \
                      currently unable to persist to disk.";
        assert_eq!(of("ERR", script), LinkError::Refused(Refused::ReadOnly));
        let script = "The user executing the script can't run this command or subcommand script: 0, on @user_script:1.";
        assert_eq!(of("ERR", script), LinkError::Refused(Refused::Denied));
        assert!(matches!(of("ERR", "unknown command"), LinkError::Refused(Refused::Other(_))));
    }
}
