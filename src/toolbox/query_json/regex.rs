//! jq's regular expressions, on ripgrep's engine: linear in the text, bounded in size, stopped between two matches.
//! The three functions here are those that the library's definitions (`test`, `match`, `capture`, `scan`, `split`,
//! `sub`, `gsub`) stand on.

use std::{cell::RefCell, ops::Range, rc::Rc};

use grep_matcher::{Captures, Matcher};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use jaq_core::{
    Cv,
    native::{bome, v},
};

use super::{
    meter::tick,
    program::{Metered, OwnFunction},
    value::{Error, Members, Text, Val, ValR},
};

/// One search cannot be stopped, so what it can take is bounded: text, pattern, automaton.
const TEXT_BYTES_MAX: usize = 1 << 20;
const PATTERN_BYTES_MAX: usize = 1_000;
const AUTOMATON_BYTES_MAX: usize = 1 << 20;
/// Compiled expressions that a program keeps.
const KEPT_MAX: usize = 16;

pub(super) fn functions() -> [OwnFunction; 3] {
    [
        ("matches", v(2), |cv| bome(apply(cv, false, true))),
        ("split_matches", v(2), |cv| bome(apply(cv, true, true))),
        ("split_", v(2), |cv| bome(apply(cv, true, false))),
    ]
}

struct Regex {
    matcher: RegexMatcher,
    /// Names of the groups, by their number.
    names: Vec<Option<Rc<Text>>>,
    is_global: bool,
    skips_empty: bool,
}

/// An expression with the pattern and flags that it was made from.
type Kept = ((String, String), Rc<Regex>);

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

/// What lies between the matches, the matches, or both in turn.
fn apply(mut cv: Cv<'_, Metered>, between: bool, matches: bool) -> ValR {
    let (flags, pattern) = (cv.0.pop_var(), cv.0.pop_var());
    let text = text_of(&cv.1)?;
    let regex = compiled(text_of(&pattern)?, text_of(&flags)?)?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::str(format_args!(
            "a text of {} bytes is too long for a regular expression; split it first (at most {TEXT_BYTES_MAX})",
            text.len()
        )));
    }
    let mut captures = regex.matcher.new_captures().map_err(Error::str)?;
    let (mut found, mut from, mut last_end) = (Vec::new(), 0, 0);
    let mut chars = Chars { text, byte: 0, chars: 0 };
    while from <= text.len() && regex.matcher.captures_at(text.as_bytes(), from, &mut captures).map_err(Error::str)? {
        tick();
        let Some(whole) = captures.get(0) else { break };
        // After an empty match the next one starts a character further.
        let step = text[whole.end()..].chars().next().map_or(1, char::len_utf8);
        from = if whole.is_empty() { whole.end() + step } else { whole.end() };
        if regex.skips_empty && whole.is_empty() {
            continue;
        }
        if between {
            found.push(Val::text(&text[last_end..whole.start()]));
            last_end = whole.end();
        }
        if matches {
            let groups = (0..captures.len()).filter_map(|group| Some((group, captures.get(group)?)));
            let groups = groups.map(|(group, at)| {
                let name = regex.names.get(group).and_then(Option::as_ref);
                chars.described(whole.start(), at.start()..at.end(), name)
            });
            found.push(groups.collect());
        }
        if !regex.is_global {
            break;
        }
    }
    if between {
        found.push(Val::text(&text[last_end..]));
    }
    Ok(found.into_iter().collect())
}

/// Counts characters while bytes go by.
struct Chars<'t> {
    text: &'t str,
    byte: usize,
    chars: usize,
}

impl Chars<'_> {
    /// A match or group as jq describes it; `whole` is where the match starts, no earlier than the one before.
    fn described(&mut self, whole: usize, at: Range<usize>, name: Option<&Rc<Text>>) -> Val {
        self.chars += self.text[self.byte..whole].chars().count();
        self.byte = whole;
        let offset = self.chars + self.text[whole..at.start].chars().count();
        let string = &self.text[at];
        let mut members = Members::default();
        let mut add = |name: &str, value: Val| members.insert(Rc::new(Text::new(name.into(), 0)), value);
        add("offset", Val::from(offset));
        add("length", Val::from(string.chars().count()));
        add("string", Val::text(string));
        if let Some(name) = name {
            add("name", Val::Str(Rc::clone(name)));
        }
        Val::object(members)
    }
}

fn text_of(value: &Val) -> Result<&str, Error> {
    match value {
        Val::Str(text) => Ok(&text.text),
        other => Err(Error::typ(other.clone(), "string")),
    }
}

fn compiled(pattern: &str, flags: &str) -> Result<Rc<Regex>, Error> {
    KEPT.with_borrow_mut(|kept| {
        if let Some((_, regex)) = kept.iter().find(|((p, f), _)| p == pattern && f == flags) {
            return Ok(Rc::clone(regex));
        }
        let regex = Rc::new(compile(pattern, flags)?);
        if kept.len() == KEPT_MAX {
            kept.remove(0);
        }
        kept.push(((pattern.to_owned(), flags.to_owned()), Rc::clone(&regex)));
        Ok(regex)
    })
}

fn compile(pattern: &str, flags: &str) -> Result<Regex, Error> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(Error::str(format_args!("a regular expression has at most {PATTERN_BYTES_MAX} bytes")));
    }
    if let Some(unknown) = flags.chars().find(|flag| !"gnimslxp".contains(*flag)) {
        return Err(Error::str(format_args!(
            "there is no flag {unknown:?} for a regular expression; g, i, n, s, l, x are"
        )));
    }
    let has = |flag: char| flags.contains(flag);
    let matcher = RegexMatcherBuilder::new()
        .case_insensitive(has('i'))
        .multi_line(has('m') || has('p'))
        .dot_matches_new_line(has('s') || has('p'))
        .swap_greed(has('l'))
        .ignore_whitespace(has('x'))
        .size_limit(AUTOMATON_BYTES_MAX)
        .dfa_size_limit(AUTOMATON_BYTES_MAX)
        .build(pattern)
        .map_err(|error| Error::str(format_args!("invalid regular expression: {error}")))?;
    let mut names = vec![None; matcher.capture_count()];
    // The matcher tells a name's number but not the names; each stands in the pattern between angle brackets.
    for rest in pattern.split('<').skip(1) {
        let name = rest.split('>').next().unwrap_or_default();
        if let Some(slot) = matcher.capture_index(name).and_then(|group| names.get_mut(group)) {
            *slot = Some(Rc::new(Text::new(name.to_owned(), 0)));
        }
    }
    Ok(Regex { matcher, names, is_global: has('g'), skips_empty: has('n') })
}
