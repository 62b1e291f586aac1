//! Which tools somebody may call. One function decides, for lists, calls, answers from the cache and tasks:
//! [`Rights::may`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Identity;

/// Somebody by name: whoever is called so, or whom one issuer calls so. Two issuers may call two people the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Subject {
    /// Of whatever issuer.
    OfAny(String),
    /// Of this one.
    Of(Issued),
}

/// A subject and who calls it so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// The name.
    pub subject: String,
    /// `bigiron:keys` for API keys, `auth.issuer` for tokens, the name of the CA for certificates.
    pub issuer: String,
}

impl Subject {
    fn is(&self, who: &Identity) -> bool {
        match self {
            Self::OfAny(subject) => who.subject() == subject,
            Self::Of(Issued { subject, issuer }) => who.subject() == subject && who.issuer() == issuer,
        }
    }
}

impl From<&str> for Subject {
    fn from(subject: &str) -> Self {
        Self::OfAny(subject.to_owned())
    }
}

/// Who may call a tool. Each list that is not empty must be met by one of its entries; with all three empty everybody
/// may.
///
/// Entries are compared exactly. The scope `admin` does not grant what asks for `admin:read`, nor the reverse: a tool
/// that both may call names both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Scopes, one of which the caller must have.
    pub scopes_any: Vec<String>,
    /// Subjects, one of which the caller must be.
    pub subjects: Vec<Subject>,
    /// Groups, one of which the caller must be in.
    pub groups: Vec<String>,
}

impl Rule {
    /// Whether everybody may.
    pub fn is_open(&self) -> bool {
        self.scopes_any.is_empty() && self.subjects.is_empty() && self.groups.is_empty()
    }

    /// The lists that `who` does not meet, each by the name of its setting.
    fn unmet_by(&self, who: &Identity) -> impl Iterator<Item = &'static str> {
        let unmet = [
            lacks(&self.scopes_any, |scope| who.has_scope(scope)).then_some("scopes_any"),
            lacks(&self.subjects, |subject| subject.is(who)).then_some("subjects"),
            lacks(&self.groups, |group| who.is_in(group)).then_some("groups"),
        ];
        unmet.into_iter().flatten()
    }
}

/// Whether one is wanted and none is there.
fn lacks<T>(wanted: &[T], has: impl FnMut(&T) -> bool) -> bool {
    !wanted.is_empty() && !wanted.iter().any(has)
}

/// The rules of all tools, by the tool's place in the registry.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    rules: Box<[Rule]>,
    all_open: bool,
}

/// Which of all tools somebody may call. Callers with equal classes see the same lists, so that a list is made once for
/// each class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RightsClass(Box<[u64]>);

impl Rights {
    /// The rule of each tool, in the order of the registry.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let rules: Box<[Rule]> = rules.into_iter().collect();
        let all_open = rules.iter().all(Rule::is_open);
        Self { rules, all_open }
    }

    /// Whether `who` may call this tool. A tool of which nothing is known, nobody may call.
    pub fn may(&self, who: &Identity, tool_index: usize) -> bool {
        self.rules.get(tool_index).is_some_and(|rule| rule.unmet_by(who).next().is_none())
    }

    /// Why `who` may not call this tool: the lists of its rule that it does not meet, each by the name of its setting.
    pub fn unmet<'a>(&'a self, who: &'a Identity, tool_index: usize) -> impl Iterator<Item = &'static str> + 'a {
        self.rules.get(tool_index).into_iter().flat_map(|rule| rule.unmet_by(who))
    }

    /// Whether everybody may call everything, so that there is one class only.
    pub fn is_open(&self) -> bool {
        self.all_open
    }

    /// The class that `who` is in.
    pub fn class(&self, who: &Identity) -> RightsClass {
        let mut words = vec![0u64; self.rules.len().div_ceil(64)];
        for tool_index in 0..self.rules.len() {
            if self.all_open || self.may(who, tool_index) {
                words[tool_index / 64] |= 1 << (tool_index % 64);
            }
        }
        RightsClass(words.into())
    }
}

impl RightsClass {
    /// Whether this tool is among them.
    pub fn contains(&self, tool_index: usize) -> bool {
        self.0.get(tool_index / 64).is_some_and(|word| word >> (tool_index % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn who(subject: &str, scopes: &[&str], groups: &[&str]) -> Identity {
        Identity::new("i".into(), subject, None, scopes.iter().copied(), groups.iter().copied(), None)
    }

    fn rule(scopes: &[&str], subjects: &[&str], groups: &[&str]) -> Rule {
        let owned = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect();
        let subjects = subjects.iter().map(|&subject| subject.into()).collect();
        Rule { scopes_any: owned(scopes), subjects, groups: owned(groups) }
    }

    #[test]
    fn every_list_that_is_there_must_be_met() {
        let rights = Rights::new([
            rule(&[], &[], &[]),
            rule(&["read", "write"], &[], &[]),
            rule(&[], &["ann"], &[]),
            rule(&[], &[], &["staff"]),
            rule(&["read"], &["ann"], &["staff"]),
        ]);
        let may = |who: &Identity| (0..6).map(|tool| rights.may(who, tool)).collect::<Vec<_>>();
        assert_eq!(may(&who("bob", &[], &[])), [true, false, false, false, false, false]);
        assert_eq!(may(&who("bob", &["write"], &["staff"])), [true, true, false, true, false, false]);
        assert_eq!(may(&who("ann", &["read"], &[])), [true, true, true, false, false, false]);
        assert_eq!(may(&who("ann", &["read"], &["staff"])), [true, true, true, true, true, false]);
    }

    #[test]
    fn what_stands_against_a_call_is_told_by_its_setting() {
        let rights = Rights::new([Rule::default(), rule(&["read"], &["ann"], &["staff"])]);
        let unmet = |who: &Identity, tool| rights.unmet(who, tool).collect::<Vec<_>>();
        assert_eq!(unmet(&who("bob", &[], &[]), 1), ["scopes_any", "subjects", "groups"]);
        assert_eq!(unmet(&who("ann", &["read"], &[]), 1), ["groups"]);
        assert_eq!(unmet(&who("bob", &["read"], &["staff"]), 1), ["subjects"]);
        assert_eq!(unmet(&who("ann", &["read"], &["staff"]), 1), [""; 0]);
        assert_eq!(unmet(&who("bob", &[], &[]), 0), [""; 0], "everybody may");
    }

    #[test]
    fn a_subject_with_its_issuer_is_nobody_elses() {
        let ann = Issued { subject: "ann".into(), issuer: "bigiron:keys".into() };
        let rights = Rights::new([
            Rule { subjects: vec![Subject::Of(ann)], ..Rule::default() },
            Rule { subjects: vec!["ann".into()], ..Rule::default() },
        ]);
        for (issuer, subject, expected) in [
            ("bigiron:keys", "ann", [true, true]),
            ("https://login.example", "ann", [false, true]),
            ("CN=CA", "ann", [false, true]),
            ("bigiron:keys", "bob", [false, false]),
            ("bigiron:keys:ann", "", [false, false]),
        ] {
            let who = Identity::new(issuer.into(), subject, None, [], [], None);
            assert_eq!([rights.may(&who, 0), rights.may(&who, 1)], expected, "{issuer} {subject}");
        }
    }

    #[test]
    fn scopes_have_no_hierarchy() {
        let rights = Rights::new([rule(&["admin:read"], &[], &[]), rule(&["admin"], &[], &[])]);
        for (scope, expected) in [
            ("admin", [false, true]),
            ("admin:read", [true, false]),
            ("admin:", [false, false]),
            ("admin:*", [false, false]),
            ("Admin", [false, false]),
            ("admin:read:all", [false, false]),
        ] {
            let who = who("s", &[scope], &[]);
            assert_eq!([rights.may(&who, 0), rights.may(&who, 1)], expected, "{scope}");
        }
    }

    #[test]
    fn an_open_set_has_one_class() {
        let rights = Rights::new([Rule::default(), Rule::default()]);
        assert!(rights.is_open());
        assert_eq!(rights.class(&who("a", &[], &[])), rights.class(&who("b", &["x"], &["y"])));
        assert!(!Rights::new([rule(&["a"], &[], &[])]).is_open());
    }

    proptest! {
        #[test]
        fn a_class_says_what_may_says(
            rules in prop::collection::vec((0usize..4, 0usize..4, 0usize..4), 0..200),
            one in (0usize..4, 0usize..4, 0usize..4),
            two in (0usize..4, 0usize..4, 0usize..4),
        ) {
            const NAMES: [&[&str]; 4] = [&[], &["a"], &["b"], &["a", "b"]];
            let rights = Rights::new(rules.iter().map(|(a, b, c)| rule(NAMES[*a], NAMES[*b], NAMES[*c])));
            let who = |(a, b, c): (usize, usize, usize)| who(["x", "a", "b", "c"][a], NAMES[b], NAMES[c]);
            let (one, two) = (who(one), who(two));
            let (first, second) = (rights.class(&one), rights.class(&two));
            for tool in 0..rules.len() + 70 {
                prop_assert_eq!(first.contains(tool), rights.may(&one, tool));
            }
            let same = (0..rules.len()).all(|tool| rights.may(&one, tool) == rights.may(&two, tool));
            prop_assert_eq!(first == second, same);
        }
    }
}
