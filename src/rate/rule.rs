//! A rate as an operator writes it: `"60 per 60s, burst 60, block 60s"`. Read once into numbers that fit together, so
//! that whoever has a [`Rule`] need not ask again.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// More than this many calls are not counted one by one; it also keeps the rounding of the spacing below 0.1 %.
const REQUESTS_MAX: u32 = 1_000_000;
/// The longest period, block, and time until a burst is whole again: what is longer is a matter for rights.
const SECONDS_MAX: u64 = 31 * 24 * 60 * 60;
const EXAMPLE: &str = "\"60 per 60s, burst 60, block 60s\"";

/// One call a second on average, a minute's worth at once, and a minute's pause for who asks for more.
pub(super) const PER_CALLER: Rule = Rule { requests: 60, per_s: 60, burst: 60, block_s: 60 };
/// More than a caller, since many can share an address; and no block, for the same reason.
pub(super) const PER_IP: Rule = Rule { requests: 100, per_s: 60, burst: 100, block_s: 0 };

/// How often something may happen. In files a text such as `"60 per 60s, burst 60, block 60s"`, or `"off"`. Times take
/// `s`, `m` or `h`. A burst that is not named is as large as the rate's number; a block that is not named is none.
///
/// In the schema it is a string of the format `rate`, so that who reads the schema can tell it from other texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    requests: u32,
    per_s: u64,
    burst: u32,
    block_s: u64,
}

impl Rule {
    /// Sets no limit.
    pub const OFF: Self = Self { requests: 0, per_s: 1, burst: 0, block_s: 0 };

    /// `requests` in each `per_s` seconds, evenly; `burst` of them at once after a rest; and nothing at all for
    /// `block_s` seconds after one that was too many.
    ///
    /// # Errors
    /// Says which number is out of range, and the range.
    pub fn new(requests: u32, per_s: u64, burst: u32, block_s: u64) -> Result<Self, String> {
        for (what, count) in [("requests", requests), ("burst", burst)] {
            if !(1..=REQUESTS_MAX).contains(&count) {
                return Err(format!("{what} is {count}: it must be from 1 to {REQUESTS_MAX} (\"off\" sets no limit)"));
            }
        }
        if !(1..=SECONDS_MAX).contains(&per_s) {
            return Err(format!("the period is {per_s} s: it must be from 1 s to {SECONDS_MAX} s (31 days)"));
        }
        if block_s > SECONDS_MAX {
            return Err(format!("the block is {block_s} s: it must be at most {SECONDS_MAX} s (31 days)"));
        }
        let whole_s = u64::from(burst) * per_s / u64::from(requests);
        if whole_s > SECONDS_MAX {
            return Err(format!(
                "a burst of {burst} at {requests} per {per_s}s takes {whole_s} s to be whole again: make it at most {SECONDS_MAX} s (31 days), by a smaller burst or a higher rate"
            ));
        }
        Ok(Self { requests, per_s, burst, block_s })
    }

    /// Whether it sets no limit.
    pub fn is_off(self) -> bool {
        self.requests == 0
    }

    /// How many in a period.
    pub fn requests(self) -> u32 {
        self.requests
    }

    /// The period, in seconds.
    pub fn per_s(self) -> u64 {
        self.per_s
    }

    /// How many at once after a rest.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// How long nothing passes after a breach, in seconds.
    pub fn block_s(self) -> u64 {
        self.block_s
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self::OFF
    }
}

/// Shows a rule with its burst and block, in seconds; [`FromStr`] reads it back.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        write!(f, "{} per {}s, burst {}, block {}s", self.requests, self.per_s, self.burst, self.block_s)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let said = |problem: String| format!("{text:?}: {problem}; write for example {EXAMPLE}, or \"off\"");
        if text.trim() == "off" {
            return Ok(Self::OFF);
        }
        let mut parts = text.split(',').map(str::trim);
        let (requests, period) = parts
            .next()
            .and_then(|rate| rate.split_once(" per "))
            .ok_or_else(|| said("a rate starts with a number, \"per\" and a time".into()))?;
        let requests = count(requests).map_err(said)?;
        let per_s = seconds(period).map_err(said)?;
        let (mut burst, mut block_s) = (None, None);
        for part in parts {
            match part.split_once(' ') {
                Some(("burst", number)) if burst.is_none() => burst = Some(count(number).map_err(said)?),
                Some(("block", time)) if block_s.is_none() => block_s = Some(seconds(time).map_err(said)?),
                Some(("burst" | "block", _)) => return Err(said(format!("{part:?} is the second of its kind"))),
                _ => return Err(said(format!("{part:?} is neither \"burst NUMBER\" nor \"block TIME\""))),
            }
        }
        Self::new(requests, per_s, burst.unwrap_or(requests), block_s.unwrap_or(0)).map_err(said)
    }
}

fn count(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a whole number up to {REQUESTS_MAX}"))
}

fn seconds(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit.trim_start() {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => return Err(format!("{text:?} is not a time such as 60s, 5m or 1h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a time such as 60s, 5m or 1h"))?;
    number.checked_mul(unit_s).ok_or_else(|| format!("{text:?} is more seconds than fit into 64 bits"))
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Rule {
    fn schema_name() -> Cow<'static, str> {
        "RateRule".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "rate",
            "pattern": "^ *(off|[0-9]+ +per +[0-9]+ *[smh]( *, *(burst +[0-9]+|block +[0-9]+ *[smh])){0,2}) *$",
            "examples": ["60 per 60s, burst 60, block 60s", "off"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_print() {
        for (text, rule) in [
            ("60 per 60s, burst 60, block 60s", Rule::new(60, 60, 60, 60)),
            ("60 per 60s", Rule::new(60, 60, 60, 0)),
            ("  5 per 1m , block 2h, burst 7 ", Rule::new(5, 60, 7, 7200)),
            ("1000000 per 1s", Rule::new(1_000_000, 1, 1_000_000, 0)),
            ("off", Ok(Rule::OFF)),
        ] {
            assert_eq!(text.parse(), rule, "{text}");
            let rule = rule.expect(text);
            assert_eq!(rule.to_string().parse(), Ok(rule), "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_told_why() {
        for (text, part) in [
            ("", "a rate starts with a number"),
            ("60", "a rate starts with a number"),
            ("sixty per 60s", "\"sixty\" is not a whole number"),
            ("-1 per 60s", "\"-1\" is not a whole number"),
            ("60 per 60", "\"60\" is not a time such as 60s"),
            ("60 per minute", "\"minute\" is not a time"),
            ("60 per 99999999999999999999s", "is not a time"),
            ("60 per 9999999999999999999h", "fit into 64 bits"),
            ("60 per 60s, burst", "neither \"burst NUMBER\""),
            ("60 per 60s, burst 1, burst 2", "the second of its kind"),
            ("60 per 60s,", "\"\" is neither"),
            ("60 per 60s, blocks 1s", "is neither"),
            ("0 per 60s", "requests is 0: it must be from 1 to 1000000"),
            ("60 per 0s", "the period is 0 s"),
            ("60 per 60s, burst 0", "burst is 0"),
            ("60 per 60s, block 745h", "the block is 2682000 s"),
            ("1 per 24h, burst 32", "takes 2764800 s to be whole again"),
        ] {
            let problem = text.parse::<Rule>().expect_err(text);
            assert!(problem.contains(part), "{text}: {problem}");
            assert!(problem.contains("write for example \"60 per 60s"), "{text}: {problem}");
        }
    }

    #[test]
    fn the_schema_takes_what_is_read() {
        let schema = schemars::schema_for!(Rule);
        let check = jsonschema::validator_for(schema.as_value()).expect("schema");
        for text in ["60 per 60s, burst 60, block 60s", "60 per 60s", "off", "5 per 1 m , block 2h, burst 7"] {
            assert!(check.is_valid(&text.into()), "{text}");
            assert!(text.parse::<Rule>().is_ok(), "{text}");
        }
        for text in ["60", "60 per 60", "on"] {
            assert!(!check.is_valid(&text.into()), "{text}");
        }
    }
}
