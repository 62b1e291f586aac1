//! What a skill must be so that clients take it, checked once before it is served: its name, its place, its fields, its
//! files, and that a skill inside another has the same files as its folder there.

use std::{collections::BTreeMap, fmt::Write as _, ops::Bound};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{BYTES_MAX, FILES_MAX, SKILL_MD, Skill, frontmatter, media};

const DESCRIPTION_CHARS_MAX: usize = 1024;
const BELOW_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 1024;

/// A skill that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    /// The path of its folder.
    pub(super) path: String,
    pub(super) skill: Skill,
    /// By their paths in it, `SKILL.md` among them.
    pub(super) files: BTreeMap<String, CheckedFile>,
}

/// A file of it.
#[derive(Debug)]
pub(super) struct CheckedFile {
    pub(super) mime_type: String,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: String,
}

/// Skills by the paths of their folders.
pub(super) fn all(skills: Vec<Skill>) -> Result<BTreeMap<String, Checked>, String> {
    let mut by_path = BTreeMap::new();
    for skill in skills {
        let checked = check(skill)?;
        let path = checked.path.clone();
        if by_path.insert(path.clone(), checked).is_some() {
            return Err(format!("two skills are at skill://{path}; rename one, or put it below another path"));
        }
    }
    check_nesting(&by_path)?;
    Ok(by_path)
}

fn check(skill: Skill) -> Result<Checked, String> {
    let name = skill.text("name").to_owned();
    let fault = |message: String| format!("skill {name:?}: {message}");
    check_name(&name).map_err(fault)?;
    check_fields(&skill).map_err(fault)?;
    check_below(&skill.below).map_err(fault)?;
    let path = if skill.below.is_empty() { name.clone() } else { format!("{}/{name}", skill.below) };
    let mut skill = skill;
    let text = skill.skill_md();
    if frontmatter::read(&text).map_err(fault)? != *skill.fields() {
        return Err(fault("its fields cannot be written as YAML; use text, whole numbers, lists and maps".into()));
    }
    let mut files = BTreeMap::new();
    files.insert(SKILL_MD.to_owned(), CheckedFile::new("text/markdown".into(), text.into_bytes()));
    for file in std::mem::take(&mut skill.files) {
        check_path(&file.path).map_err(fault)?;
        if !media::is_type(&file.mime_type) {
            let (path, mime_type) = (&file.path, &file.mime_type);
            return Err(fault(format!("{mime_type:?}, of {path:?}, is no media type of a file; write \"text/plain\"")));
        }
        if file.path == SKILL_MD {
            return Err(fault("SKILL.md is made from its fields and body; use Skill::from_markdown to give it".into()));
        }
        if files.insert(file.path.clone(), CheckedFile::new(file.mime_type, file.bytes)).is_some() {
            return Err(fault(format!("two files are at {:?}; paths must differ", file.path)));
        }
    }
    if files.len() > FILES_MAX {
        return Err(fault(format!("it has {} files; clients take no more than {FILES_MAX}", files.len())));
    }
    let bytes = files.values().map(|file| file.bytes.len()).sum::<usize>();
    if bytes > BYTES_MAX {
        return Err(fault(format!("its files have {bytes} bytes; clients take no more than {BYTES_MAX}")));
    }
    let is_folder = |path: &str| below(&files, path).next().is_some();
    if let Some(path) = files.keys().find(|path| is_folder(path)) {
        return Err(fault(format!("{path:?} is a file, and a folder of other files; rename one")));
    }
    Ok(Checked { path, skill, files })
}

impl CheckedFile {
    pub(super) fn new(mime_type: String, bytes: Vec<u8>) -> Self {
        let mut digest = String::from("sha256:");
        for byte in Sha256::digest(&bytes) {
            // A String takes what is written to it.
            let _ = write!(digest, "{byte:02x}");
        }
        Self { mime_type, bytes, digest }
    }
}

/// The files in the folder `path`, with their paths from there.
fn below<'a>(
    files: &'a BTreeMap<String, CheckedFile>,
    path: &str,
) -> impl Iterator<Item = (&'a str, &'a CheckedFile)> + use<'a> {
    let folder = format!("{path}/");
    let from = files.range::<str, _>((Bound::Included(folder.as_str()), Bound::Unbounded));
    from.map_while(move |(path, file)| Some((path.strip_prefix(&folder)?, file)))
}

/// The names that the format of skills allows.
fn check_name(name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if (1..=64).contains(&name.len()) && name.bytes().all(good) && !hyphens {
        return Ok(());
    }
    Err("this is no name for a skill: use 1 to 64 lowercase letters, digits and single hyphens between them".into())
}

fn check_fields(skill: &Skill) -> Result<(), String> {
    let chars = skill.text("description").chars().count();
    if skill.text("description").trim().is_empty() || chars > DESCRIPTION_CHARS_MAX {
        return Err(format!(
            "its description has {chars} characters; say in 1 to {DESCRIPTION_CHARS_MAX} what it does and when to use it"
        ));
    }
    let metadata = skill.fields().get("metadata").and_then(Value::as_object);
    if let Some(key) = metadata.and_then(|m| m.keys().find(|key| key.starts_with("io.modelcontextprotocol/"))) {
        return Err(format!("the metadata key {key:?} is reserved for the protocol; use a prefix of your own"));
    }
    Ok(())
}

/// The parts of a path before the name become parts of URIs, the first of them where others have a host.
fn check_below(below: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(good);
    if below.is_empty() || (below.len() <= BELOW_BYTES_MAX && below.split('/').all(part)) {
        return Ok(());
    }
    Err(format!(
        "it cannot be below {below:?}; use parts of lowercase letters, digits, '-', '_' and '.' with '/' between them, \
         such as \"acme/billing\""
    ))
}

fn check_path(path: &str) -> Result<(), String> {
    let wrong = if path.is_empty() {
        "is empty"
    } else if path.len() > PATH_BYTES_MAX {
        "is too long"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.contains('\\') || path.contains(char::is_control) {
        "has a backslash or a control character in it"
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "has an empty part, \".\" or \"..\" in it"
    } else {
        return Ok(());
    };
    Err(format!("the path {path:?} {wrong}; give one from the skill's folder, such as \"scripts/run.py\""))
}

/// The files of a skill inside another are files of both, and both must say so.
fn check_nesting(by_path: &BTreeMap<String, Checked>) -> Result<(), String> {
    for inner in by_path.values() {
        for (at, _) in inner.path.match_indices('/') {
            let Some(outer) = by_path.get(&inner.path[..at]) else { continue };
            let from_outer = below(&outer.files, &inner.path[at + 1..]).map(|(path, file)| (path, &file.digest));
            if !from_outer.eq(inner.files.iter().map(|(path, file)| (path.as_str(), &file.digest))) {
                return Err(format!(
                    "skill://{} lies inside skill://{}, but their files differ; give both the same files below {:?}, \
                     or put one of them elsewhere",
                    inner.path,
                    outer.path,
                    &inner.path[at + 1..],
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn skills_that_clients_would_refuse_are_told() {
        let file = |path: &str| Skill::new("a", "d").file(path, "text/plain", "");
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        let many = (0..FILES_MAX).fold(Skill::new("a", "d"), |s, n| s.file(n.to_string(), "text/plain", ""));
        let long = "x".repeat(2000);
        for (skill, says) in [
            (Skill::new("", "d"), "no name for a skill"),
            (Skill::new("A", "d"), "no name for a skill"),
            (Skill::new("-a", "d"), "no name for a skill"),
            (Skill::new("a-", "d"), "no name for a skill"),
            (Skill::new("a--b", "d"), "no name for a skill"),
            (Skill::new("a/b", "d"), "no name for a skill"),
            (Skill::new("..", "d"), "no name for a skill"),
            (Skill::new("ä", "d"), "no name for a skill"),
            (Skill::new(&"a".repeat(65), "d"), "no name for a skill"),
            (Skill::new("a", " "), "its description"),
            (Skill::new("a", &long), "has 2000 characters"),
            (Skill::new("a", "d").field("description", 1), "its description"),
            (Skill::new("a", "d").field("deep", deep), "in each other"),
            (Skill::new("a", "d").field("metadata", json!({ "io.modelcontextprotocol/x": 1 })), "is reserved"),
            (Skill::new("a", "d").below("A"), "cannot be below"),
            (Skill::new("a", "d").below("a/"), "cannot be below"),
            (Skill::new("a", "d").below("a/../b"), "cannot be below"),
            (Skill::new("a", "d").below("a%2fb"), "cannot be below"),
            (file(""), "is empty"),
            (file("/x"), "is absolute"),
            (file("../x"), "\"..\""),
            (file("x/../y"), "\"..\""),
            (file("./x"), "\"..\""),
            (file("x//y"), "empty part"),
            (file("x/"), "empty part"),
            (file("x\\y"), "backslash"),
            (file("x\0"), "control character"),
            (file(&long), "too long"),
            (file("SKILL.md"), "made from its fields"),
            (file("x").file("x", "text/plain", "2"), "two files are at \"x\""),
            (file("x").file("x/y", "text/plain", ""), "a folder of other files"),
            (file("SKILL.md/x"), "a folder of other files"),
            (Skill::new("a", "d").file("x", "inode/directory", ""), "no media type"),
            (Skill::new("a", "d").file("x", "text", ""), "no media type"),
            (Skill::new("a", "d").file("x", "text/plain", vec![0; BYTES_MAX]), "take no more than 16777216"),
            (many, "take no more than 512"),
        ] {
            let told = all(vec![skill]).expect_err(says);
            assert!(told.contains(says) && told.starts_with("skill \""), "{says}: {told}");
        }
        let two = all(vec![Skill::new("a", "d"), Skill::new("a", "e")]).unwrap_err();
        assert!(two.contains("two skills are at skill://a"), "{two}");
        let apart = all(vec![Skill::new("a", "d"), Skill::new("a", "e").below("b")]);
        assert!(apart.is_ok(), "names may repeat at different places");
    }
}
