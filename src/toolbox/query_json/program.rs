//! Programs: from text to something that runs, with the functions that they may call. What reaches outside a value
//! is left out: the environment, the clock's zone, files, modules, logging, ending the process.

use std::sync::LazyLock;

use jaq_core::{
    Compiler, DataT, RunPtr,
    compile::Undefined,
    data::HasLut,
    load::{
        self, Arena, File, Loader,
        lex::StrPart,
        parse::{BinaryOp, Def, Pattern, Term},
    },
    native::{Fun, bome, run, unary, v},
    path::Part,
};
use jaq_std::ValT as _;

use super::{
    json,
    meter::{self, Charge},
    regex,
    value::{Error, Val, ValR},
};
use crate::toolbox::output::clipped;

/// Text of a program.
pub(super) const PROGRAM_BYTES_MAX: usize = 8_000;
/// About what the interpreter holds for one step that waits for others.
const CONTEXT_BYTES: usize = 256;

/// Functions in Rust that are left out, with the definitions that stand on them.
const LEFT_OUT: [&str; 13] = [
    "env",
    "halt",
    "halt_error",
    "debug",
    "debug_empty",
    "stderr",
    "stderr_empty",
    "localtime",
    "strflocaltime",
    "input",
    "inputs",
    "input_filename",
    "input_line_number",
];

/// What jq has and the interpreter's library has not.
const MORE_DEFINITIONS: &str = r#"
def IN(s): any(s == .; .);
def IN(src; s): any(src == s; .);
def INDEX(stream; f): reduce stream as $row ({}; .[$row | f | tostring] |= $row);
def INDEX(f): INDEX(.[]; f);
def GROUP_BY(f): group_by(f);
def pick(f): . as $whole | reduce path(f) as $path (null; setpath($path; $whole | getpath($path)));
def leaf_paths: paths(scalars);
def toarray: if isarray then . else [.] end;
def ascii: [.] | implode;
def @csv: [.[] | if isstring then "\"" + gsub("\""; "\"\"") + "\"" elif . == null then "" elif . >= []
    then error("@csv takes arrays of texts, numbers, booleans and nulls") else tostring end] | join(",");
def @tsv: [.[] | if isstring then gsub("\\\\"; "\\\\") | gsub("\t"; "\\t") | gsub("\n"; "\\n") | gsub("\r"; "\\r")
    elif . == null then "" elif . >= []
    then error("@tsv takes arrays of texts, numbers, booleans and nulls") else tostring end] | join("\t");
"#;

type Definitions = Vec<Def<&'static str>>;

static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(|| {
    let more = load::parse(MORE_DEFINITIONS, |parser| parser.defs()).unwrap_or_default();
    debug_assert!(!more.is_empty(), "the definitions of this file parse");
    let all = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).chain(more);
    all.filter(|def| !LEFT_OUT.contains(&def.name)).collect()
});

/// The interpreter's kind of data: our values, and the meter.
pub(super) enum Metered {}

/// What every context of a running program holds: the meter sees each step and each context that is kept.
pub(super) struct Data<'a> {
    lut: &'a jaq_core::Lut<Metered>,
    _charge: Charge,
}

impl<'a> Data<'a> {
    pub(super) fn new(lut: &'a jaq_core::Lut<Metered>) -> Self {
        Self { lut, _charge: Charge::new(CONTEXT_BYTES) }
    }
}

impl Clone for Data<'_> {
    fn clone(&self) -> Self {
        Self::new(self.lut)
    }
}

impl DataT for Metered {
    type V<'a> = Val;
    type Data<'a> = Data<'a>;
}

impl<'a> HasLut<'a, Metered> for Data<'a> {
    fn lut(&self) -> &'a jaq_core::Lut<Metered> {
        meter::step();
        self.lut
    }
}

/// Compiles a program; the error is for the agent.
pub(super) fn compile(code: &str) -> Result<jaq_core::Filter<Metered>, String> {
    if code.len() > PROGRAM_BYTES_MAX {
        return Err(format!("the program has {} bytes; write one of at most {PROGRAM_BYTES_MAX}", code.len()));
    }
    let arena = Arena::default();
    let loader = Loader::new(DEFINITIONS.iter().cloned());
    let modules = loader.load(&arena, File { code, path: () }).map_err(|errors| load_fault(code, errors))?;
    if let Some(term) = load::parse(code, |parser| parser.term())
        && let Some(name) = growing_recursion(&term)
    {
        return Err(format!(
            "{name:?} calls itself and takes a filter as parameter, which is not supported; take the parameter as a \
             value (${name}_arg), put the recursion into an inner def without parameters, or use recurse, until, while \
             or reduce"
        ));
    }
    Compiler::default().with_funs(functions()).compile(modules).map_err(|errors| {
        let first = errors.iter().flat_map(|(_, errors)| errors).next();
        first.map_or_else(|| "the program cannot be compiled".into(), |undefined| undefined_fault(code, undefined))
    })
}

fn load_fault(code: &str, errors: load::Errors<&str, ()>) -> String {
    let first = errors.into_iter().next().map(|(_, error)| error);
    let (expected, found) = match first {
        Some(load::Error::Lex(errors)) => match errors.into_iter().next() {
            Some((load::lex::Expect::Delim(open), found)) => (format!("the end of what {open:?} opens"), found),
            Some((expected, found)) => (expected.as_str().to_owned(), found),
            None => return "the program cannot be read".into(),
        },
        Some(load::Error::Parse(errors)) => match errors.into_iter().next() {
            Some((expected, found)) => (expected.as_str().to_owned(), found),
            None => return "the program cannot be read".into(),
        },
        _ => return "the program imports a module; write what it needs into the program itself".into(),
    };
    format!("the program is not valid jq: expected {expected} {}", place(code, found))
}

fn undefined_fault(code: &str, (name, undefined): &(&str, Undefined)) -> String {
    let what = match undefined {
        Undefined::Filter(arity) => {
            let like = DEFINITIONS.iter().map(|def| def.name).chain(functions().map(|(name, _, _)| name));
            let like = like.filter(|other| strsim::jaro_winkler(other, name) > 0.8 && !other.starts_with('!'));
            let nearest = like.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let hint = match nearest {
                Some(nearest) if nearest == *name => "; it takes another number of arguments".into(),
                Some(nearest) => format!("; did you mean {nearest}?"),
                None => String::new(),
            };
            format!("there is no function {name}/{arity}{hint}")
        }
        other => format!("there is no {} {name}", other.as_str()),
    };
    format!("{what} {}", place(code, name))
}

/// Where in the program, with what stands there.
fn place(code: &str, found: &str) -> String {
    let at = (found.as_ptr().addr()).checked_sub(code.as_ptr().addr()).filter(|at| code.is_char_boundary(*at));
    match at {
        Some(at) if at < code.len() && !found.is_empty() => {
            let line = 1 + code[..at].matches('\n').count();
            let column = 1 + code[..at].chars().rev().take_while(|c| *c != '\n').count();
            format!("(line {line}, column {column}: {:?})", clipped(&code[at..], 30))
        }
        _ => "(at its end)".into(),
    }
}

/// The name of a definition with a filter as parameter that calls itself. Each round of such a recursion adds to a
/// list that nothing counts and that is taken apart by recursion.
fn growing_recursion<'s>(term: &Term<&'s str>) -> Option<&'s str> {
    let mut found = None;
    visit(term, &mut |term| {
        if let Term::Def(defs, _) = term {
            for def in defs.iter().filter(|def| def.args.iter().any(|arg| !arg.starts_with('$'))) {
                visit(&def.body, &mut |inner| {
                    if matches!(inner, Term::Call(name, args) if *name == def.name && args.len() == def.args.len()) {
                        found = Some(def.name);
                    }
                });
            }
        }
    });
    found
}

/// Calls `f` with a term and every term in it.
fn visit<'s>(term: &Term<&'s str>, f: &mut dyn FnMut(&Term<&'s str>)) {
    f(term);
    match term {
        Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) | Term::Arr(None) => {}
        Term::Str(_, parts) => parts.iter().for_each(|part| {
            if let StrPart::Term(term) = part {
                visit(term, f);
            }
        }),
        Term::Arr(Some(term)) | Term::Neg(term) | Term::Label(_, term) => visit(term, f),
        Term::Obj(members) => members.iter().for_each(|(name, value)| {
            visit(name, f);
            value.iter().for_each(|value| visit(value, f));
        }),
        Term::BinOp(l, op, r) => {
            visit(l, f);
            if let BinaryOp::Pipe(Some(pattern)) = op {
                visit_pattern(pattern, f);
            }
            visit(r, f);
        }
        Term::Fold(_, xs, pattern, rest) => {
            visit(xs, f);
            visit_pattern(pattern, f);
            rest.iter().for_each(|term| visit(term, f));
        }
        Term::TryCatch(body, catch) => {
            visit(body, f);
            catch.iter().for_each(|term| visit(term, f));
        }
        Term::IfThenElse(branches, otherwise) => {
            branches.iter().for_each(|(test, then)| {
                visit(test, f);
                visit(then, f);
            });
            otherwise.iter().for_each(|term| visit(term, f));
        }
        Term::Def(defs, body) => {
            defs.iter().for_each(|def| visit(&def.body, f));
            visit(body, f);
        }
        Term::Call(_, args) => args.iter().for_each(|term| visit(term, f)),
        Term::Path(head, path) => {
            visit(head, f);
            path.0.iter().for_each(|(part, _)| match part {
                Part::Index(term) => visit(term, f),
                Part::Range(from, to) => from.iter().chain(to).for_each(|term| visit(term, f)),
            });
        }
    }
}

fn visit_pattern<'s>(pattern: &Pattern<&'s str>, f: &mut dyn FnMut(&Term<&'s str>)) {
    match pattern {
        Pattern::Var(_) => {}
        Pattern::Arr(patterns) => patterns.iter().for_each(|pattern| visit_pattern(pattern, f)),
        Pattern::Obj(members) => members.iter().for_each(|(name, pattern)| {
            visit(name, f);
            visit_pattern(pattern, f);
        }),
    }
}

fn functions() -> impl Iterator<Item = Fun<Metered>> {
    let library = jaq_core::funs().chain(jaq_std::funs());
    let own = own_functions();
    let replaced: Vec<_> = own.iter().map(|(name, _, _)| *name).collect();
    library
        .filter(move |(name, _, _)| !LEFT_OUT.contains(name) && !replaced.contains(name))
        .chain(own.into_iter().map(run::<Metered>))
}

/// Name, parameters and what runs.
pub(super) type OwnFunction = jaq_core::native::Filter<RunPtr<Metered>>;

fn own_functions() -> Vec<OwnFunction> {
    let values: [OwnFunction; 7] = [
        ("fromjson", v(0), |cv| bome(from_json(&cv.1))),
        ("tojson", v(0), |cv| bome(Ok(json::to_text(&cv.1)))),
        ("length", v(0), |cv| bome(length(&cv.1))),
        ("contains", v(1), |cv| unary(cv, |value, part| contains(&value, &part).map(Val::Bool))),
        ("has", v(1), |cv| unary(cv, |value, index| value.part(&index).map(|part| Val::Bool(part.is_some())))),
        ("indices", v(1), |cv| unary(cv, |value, wanted| value.indices(&wanted))),
        ("bsearch", v(1), |cv| {
            unary(cv, |value, wanted| match value {
                Val::Arr(array) => {
                    Ok(array.items.binary_search(&wanted).map_or_else(|at| Val::Int(-1 - at as i64), Val::from))
                }
                other => Err(Error::typ(other, "array")),
            })
        }),
    ];
    values.into_iter().chain(regex::functions()).collect()
}

fn from_json(value: &Val) -> ValR {
    let Some(text) = value.as_bytes() else { return Err(Error::typ(value.clone(), "string")) };
    json::Reader::default().one(text).map_err(|error| Error::str(json::fault("the text", &error)))
}

fn length(value: &Val) -> ValR {
    Ok(match value {
        Val::Null(_) => Val::Int(0),
        Val::Bool(_) => return Err(Error::str(format_args!("{value} has no length"))),
        Val::Int(number) => number.checked_abs().map_or(Val::Float(number.unsigned_abs() as f64), Val::Int),
        Val::Float(number) => Val::Float(number.abs()),
        Val::Str(text) => Val::from(text.text.chars().count()),
        Val::Arr(array) => Val::from(array.items.len()),
        Val::Obj(members) => Val::from(members.len()),
    })
}

fn contains(value: &Val, part: &Val) -> Result<bool, Error> {
    meter::tick();
    Ok(match (value, part) {
        (Val::Str(text), Val::Str(part)) => text.text.contains(&part.text),
        (Val::Arr(array), Val::Arr(parts)) => {
            parts.items.iter().all(|part| array.items.iter().any(|item| contains(item, part).unwrap_or(false)))
        }
        (Val::Obj(members), Val::Obj(parts)) => parts
            .iter()
            .all(|(name, part)| members.get(&name.text).is_some_and(|member| contains(member, part).unwrap_or(false))),
        (value, part) if value.kind() == part.kind() => value == part,
        (value, part) => return Err(Error::str(format_args!("a {} cannot contain a {}", value.kind(), part.kind()))),
    })
}
