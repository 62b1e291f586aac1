//! What happens to sessions, as instances tell each other: who tells it, who hears it, and what is remembered of a call that
//! was taken back for who hears of it too late.

use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Hash, Records};
use crate::cluster::{
    keys::{Keys, hex},
    link::{Event, LinkError, Script, Subscription, cmd},
};

/// Calls of one session that are remembered as taken back.
const CANCELLED_MAX: usize = 16;

/// Tells whoever runs a call that it was taken back, and remembers it for who may take the call over. A Redis that is full
/// or takes no writes tells it all the same.
static CANCEL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local told = redis.call('PUBLISH', ARGV[4], ARGV[5])
redis.pcall('LPUSH', KEYS[1], ARGV[1])
redis.pcall('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.pcall('PEXPIRE', KEYS[1], ARGV[3])
return told",
    )
});

/// What happened to a session, as instances tell each other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    /// It has ended.
    Ended(Hash),
    /// Its record is another.
    Changed(Hash),
    /// Its client takes this call back.
    Cancelled(Hash, Value),
    /// Its client reads this stream elsewhere: the number of its turn, and the stream's name.
    Read(Hash, u64, String),
    /// Its client answered a question of ours.
    Answered(Hash, u64, Result<Value, Value>),
    /// It is not known any more what happened.
    Gap,
}

impl Records {
    /// Tells the others that a record is another.
    ///
    /// # Errors
    /// Redis did not take it.
    pub(crate) async fn tell_changed(&self, hash: Hash) -> Result<(), LinkError> {
        self.tell("c", hash, "").await
    }

    /// Tells the others that the client takes a call back, also those who take it over later.
    ///
    /// # Errors
    /// Redis did not take it.
    pub(crate) async fn tell_cancelled(&self, hash: Hash, id: &Value) -> Result<(), LinkError> {
        let mut script = CANCEL.prepare_invoke();
        script.key(cancelled(&self.keys, hash)).arg(mark(id)).arg(CANCELLED_MAX).arg(self.expiry.as_millis() as u64);
        script.arg(self.keys.sessions()).arg(self.text_of("x", hash, &id.to_string()));
        self.link.script::<u64>(&script).await.map(drop)
    }

    /// Tells the one process of this tag what the client answered; whether it may have heard it.
    ///
    /// # Errors
    /// Redis did not take it.
    pub(crate) async fn tell_answer(
        &self,
        tag: u32,
        hash: Hash,
        question: u64,
        answer: &Result<Value, Value>,
    ) -> Result<bool, LinkError> {
        let (kind, value) = match answer {
            Ok(value) => ("r", value),
            Err(value) => ("f", value),
        };
        let text = format!("{kind}{:08x}{}{question} {value}", self.tag, hash.text());
        let heard: u64 = self.link.query(cmd("PUBLISH").arg(self.keys.mail(tag)).arg(text)).await?;
        // In a cluster a node counts its own listeners only, and nobody else is there to be asked in one go.
        Ok(heard > 0 || self.keys.is_cluster())
    }

    pub(super) async fn tell(&self, kind: &str, hash: Hash, rest: &str) -> Result<(), LinkError> {
        self.link.query(cmd("PUBLISH").arg(self.keys.sessions()).arg(self.text_of(kind, hash, rest))).await
    }

    fn text_of(&self, kind: &str, hash: Hash, rest: &str) -> String {
        format!("{kind}{:08x}{}{rest}", self.tag, hash.text())
    }

    /// Listens to what the others tell.
    pub(crate) fn listen(&self) -> Listener {
        let channels = vec![self.keys.sessions(), self.keys.mail(self.tag)];
        Listener { events: self.link.subscribe(channels), tag: self.tag }
    }
}

/// Where the calls of a session stand that were taken back.
pub(in crate::cluster) fn cancelled(keys: &Keys, hash: Hash) -> String {
    format!("{}:x", keys.session(&hash.text()))
}

/// What stands there for a call: a client may choose long ids.
pub(in crate::cluster) fn mark(id: &Value) -> String {
    hex(&Sha256::digest(id.to_string())[..8])
}

/// Who hears what the others tell.
#[derive(Debug)]
pub(crate) struct Listener {
    events: Subscription,
    tag: u32,
}

impl Listener {
    /// The next news; none when the runtime ends.
    pub(crate) async fn next(&mut self) -> Option<News> {
        loop {
            match self.events.next().await? {
                Event::Begun => {}
                Event::Gap => return Some(News::Gap),
                Event::Message(message) => {
                    if let Some(news) = read(&message.payload, self.tag) {
                        return Some(news);
                    }
                }
            }
        }
    }
}

/// Reads a message of another; none when it is our own, or none of ours.
fn read(payload: &[u8], own: u32) -> Option<News> {
    let text = std::str::from_utf8(payload).ok()?;
    let (kind, tag) = (text.get(..1)?, u32::from_str_radix(text.get(1..9)?, 16).ok()?);
    let (hash, rest) = (Hash::parse(text.get(9..41)?)?, text.get(41..)?);
    if tag == own {
        return None;
    }
    let answered = || {
        let (question, value) = rest.split_once(' ')?;
        Some((question.parse().ok()?, serde_json::from_str(value).ok()?))
    };
    Some(match kind {
        "e" => News::Ended(hash),
        "c" => News::Changed(hash),
        "x" => News::Cancelled(hash, serde_json::from_str(rest).ok()?),
        "t" => {
            let (turn, name) = rest.split_once(' ')?;
            News::Read(hash, turn.parse().ok()?, name.to_owned())
        }
        "r" => answered().map(|(question, value)| News::Answered(hash, question, Ok(value)))?,
        "f" => answered().map(|(question, value)| News::Answered(hash, question, Err(value)))?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_tell_is_read_and_what_is_odd_is_left() {
        let hash = Hash([0xab; 16]);
        let of = |kind: &str, rest: &str| format!("{kind}0000000f{}{rest}", hash.text());
        let read = |text: String| read(text.as_bytes(), 1);
        assert_eq!(read(of("e", "")), Some(News::Ended(hash)));
        assert_eq!(read(of("c", "")), Some(News::Changed(hash)));
        assert_eq!(read(of("x", "\"a\"")), Some(News::Cancelled(hash, json!("a"))));
        assert_eq!(read(of("t", "3 0a-1")), Some(News::Read(hash, 3, "0a-1".into())));
        assert_eq!(read(of("r", "7 {\"a\": 1}")), Some(News::Answered(hash, 7, Ok(json!({ "a": 1 })))));
        assert_eq!(read(of("f", "7 null")), Some(News::Answered(hash, 7, Err(Value::Null))));
        assert_eq!(super::read(of("e", "").as_bytes(), 15), None, "our own");
        for odd in ["", "e", "é", &of("q", ""), &of("x", "{"), &of("r", "x 1"), &of("r", "1"), "e0000000fxx"] {
            assert_eq!(read(odd.to_owned()), None, "{odd}");
        }
    }
}
