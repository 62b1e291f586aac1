//! Skills: folders of instructions and files that clients load for an agent when it needs them. Here: what an author
//! writes, from pieces or from a folder. `set` is what is served of it; the protocol around that is not here.

mod check;
mod folder;
mod frontmatter;
mod media;
mod set;

use std::{io, path::Path};

use serde_json::{Map, Value};

pub(crate) use set::Skills;

/// The name of the extension.
pub(crate) const SKILLS_EXTENSION: &str = "io.modelcontextprotocol/skills";
/// Files of one skill: clients need not take more.
const FILES_MAX: usize = 512;
/// Bytes of all files of one skill: clients need not take more.
const BYTES_MAX: usize = 16 << 20;
/// The file that a skill starts with.
const SKILL_MD: &str = "SKILL.md";

/// A skill: its `SKILL.md`, which says when and how to use it, and the files that it refers to.
///
/// Faults of a skill (a name that is not allowed, a path that leads out of it, more than 512 files or 16 MiB) are told
/// when the server is built.
#[derive(Clone, Debug)]
pub struct Skill {
    head: Head,
    /// Where the skill is, before its name; empty for nowhere in particular.
    below: String,
    files: Vec<SkillFile>,
}

/// Where `SKILL.md` comes from.
#[derive(Clone, Debug)]
enum Head {
    /// It is written from these.
    Made { fields: Map<String, Value>, body: String },
    /// It is given, and has these fields.
    Given { fields: Map<String, Value>, text: String },
}

/// A file besides `SKILL.md`.
#[derive(Clone, Debug)]
struct SkillFile {
    path: String,
    mime_type: String,
    bytes: Vec<u8>,
}

impl Skill {
    /// A skill whose `SKILL.md` is written from its parts. `name` has lowercase letters, digits and single hyphens, at
    /// most 64; `description` says in at most 1024 characters what the skill does and when to use it.
    pub fn new(name: &str, description: &str) -> Self {
        let fields = [("name", name), ("description", description)];
        let fields = fields.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect();
        Self::of(Head::Made { fields, body: String::new() })
    }

    /// A skill from the text of its `SKILL.md`, for example one that was compiled in with `include_str!`.
    ///
    /// # Errors
    /// When the text does not open with YAML that says a name and a description.
    pub fn from_markdown(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let fields = frontmatter::read(&text).map_err(|fault| format!("{SKILL_MD}: {fault}"))?;
        for key in ["name", "description"] {
            match fields.get(key) {
                Some(Value::String(_)) => {}
                Some(other) => return Err(format!("{SKILL_MD}: its {key} is {other}, not text; put it in quotes")),
                None => return Err(format!("{SKILL_MD}: its frontmatter has no {key}; add a line \"{key}: ...\"")),
            }
        }
        Ok(Self::of(Head::Given { fields, text }))
    }

    /// A skill from a folder: its `SKILL.md` and all files below, read now and whole. Names that start with a dot are
    /// left out.
    ///
    /// # Errors
    /// When something cannot be read, is a link or no regular file, is too much, or `SKILL.md` is missing or has no
    /// name and description; says where.
    pub fn from_dir(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let fault =
            |message: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {message}", path.display()));
        let mut files = folder::read(path)?;
        let Some(at) = files.iter().position(|(path, _)| path == SKILL_MD) else {
            return Err(fault("there is no SKILL.md, which every skill starts with"));
        };
        let (_, text) = files.remove(at);
        let text = String::from_utf8(text).map_err(|_| fault("SKILL.md is not UTF-8"))?;
        let mut skill = Self::from_markdown(text).map_err(|message| fault(&message))?;
        for (path, bytes) in files {
            let mime_type = media::type_of(&path, &bytes);
            skill.files.push(SkillFile { path, mime_type: mime_type.to_owned(), bytes });
        }
        Ok(skill)
    }

    /// The instructions, in Markdown: what `SKILL.md` says after its fields. Replaces those of a given `SKILL.md`.
    #[must_use]
    pub fn body(mut self, markdown: impl Into<String>) -> Self {
        let (Head::Made { fields, .. } | Head::Given { fields, .. }) = self.head;
        self.head = Head::Made { fields, body: markdown.into() };
        self
    }

    /// Another field of the frontmatter, such as `license`, `compatibility` or `metadata`.
    #[must_use]
    pub fn field(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (mut fields, body) = match self.head {
            Head::Made { fields, body } => (fields, body),
            Head::Given { fields, text } => (fields, frontmatter::body(&text).to_owned()),
        };
        fields.insert(key.to_owned(), value.into());
        self.head = Head::Made { fields, body };
        self
    }

    /// A file that `SKILL.md` refers to by `path`, such as `"scripts/run.py"`.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, mime_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push(SkillFile { path: path.into(), mime_type: mime_type.to_owned(), bytes: bytes.into() });
        self
    }

    /// Puts the skill below a path of the server's own choice: `refunds` below `"acme/billing"` is
    /// `skill://acme/billing/refunds/SKILL.md`. Tells skills of one name apart.
    #[must_use]
    pub fn below(mut self, path: impl Into<String>) -> Self {
        self.below = path.into();
        self
    }

    fn of(head: Head) -> Self {
        Self { head, below: String::new(), files: Vec::new() }
    }

    fn fields(&self) -> &Map<String, Value> {
        let (Head::Made { fields, .. } | Head::Given { fields, .. }) = &self.head;
        fields
    }

    /// A field that is text; empty when it is not there.
    fn text(&self, key: &str) -> &str {
        self.fields().get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// The text of `SKILL.md`.
    fn skill_md(&self) -> String {
        match &self.head {
            Head::Made { fields, body } => frontmatter::write(fields, body),
            Head::Given { text, .. } => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_folder_is_read_with_its_fields_files_and_types() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("scripts")).unwrap();
        let text = "---\nname: pdf\ndescription: Fill forms\nlicense: MIT\n---\n\n# PDF\n";
        fs::write(dir.path().join("SKILL.md"), text).unwrap();
        fs::write(dir.path().join("scripts/run.py"), "print(1)").unwrap();
        fs::write(dir.path().join("data"), [0, 159]).unwrap();
        let skill = Skill::from_dir(dir.path()).unwrap();
        assert_eq!(skill.text("name"), "pdf");
        assert_eq!(skill.fields()["license"], "MIT");
        assert_eq!(skill.skill_md(), text, "it is served as it was written");
        let files: Vec<_> = skill.files.iter().map(|f| (f.path.as_str(), f.mime_type.as_str())).collect();
        assert_eq!(files, [("data", "application/octet-stream"), ("scripts/run.py", "text/x-python")]);
    }

    #[test]
    fn a_folder_without_a_good_skill_md_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let told = || Skill::from_dir(dir.path()).expect_err("a fault").to_string();
        assert!(told().contains("there is no SKILL.md"));
        for (text, says) in [
            (&b"# no fields"[..], "open with a line"),
            (b"---\nname: a\n---\n", "no description"),
            (b"---\ndescription: a\n---\n", "no name"),
            (b"---\nname: 12\ndescription: a\n---\n", "name is 12, not text"),
            (b"---\nname: a\ndescription: [a]\n---\n", "not text"),
            (b"---\nname: a\ndescription: a: b\n---\n", "line 3 of its frontmatter: this is not YAML"),
            (b"---\nname: \xff\n---\n", "not UTF-8"),
        ] {
            fs::write(dir.path().join("SKILL.md"), text).unwrap();
            let told = told();
            assert!(told.contains(says) && told.contains(dir.path().to_str().unwrap()), "{told}");
        }
    }

    #[test]
    fn pieces_make_a_skill_md_and_a_given_one_can_be_changed() {
        let made = Skill::new("pdf", "Fill forms").field("metadata", json!({ "version": "1.0" })).body("# PDF");
        let text = made.skill_md();
        assert_eq!(
            text,
            "---\nname: \"pdf\"\ndescription: \"Fill forms\"\nmetadata: {\"version\": \"1.0\"}\n---\n\n# PDF\n"
        );
        let given = Skill::from_markdown(text).unwrap().field("license", "MIT");
        assert!(given.skill_md().contains("\nlicense: \"MIT\"\n"));
        assert!(given.skill_md().ends_with("---\n\n# PDF\n"));
        assert_eq!(frontmatter::read(&given.skill_md()).as_ref(), Ok(given.fields()));
        assert!(given.body("new").skill_md().ends_with("---\n\nnew\n"));
    }
}
