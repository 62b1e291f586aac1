//! Skills as they are served: checked once, with digests and JSON made at the start, and looked up by the URIs that
//! were made then. A URI is compared whole and never taken apart, so no way of writing one leads anywhere else.
//! What the protocol adds to each result (`resultType`, hints for keeping it) is not here.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    ops::Bound,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use serde_json::json;

use super::{
    SKILL_MD, Skill,
    check::{self, Checked, CheckedFile},
    media,
};

/// The media type that says that a resource is a folder.
pub(super) const FOLDER_TYPE: &str = "inode/directory";
/// What cursors start with, so that one of another list or of an older form is told from a broken one.
const SKILLS_CURSOR: &str = "s1:";
const FOLDER_CURSOR: &str = "d1:";
/// A page ends after the entry that reaches this many bytes: an entry names all files of its skill.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// A list's entries: the name that each is ordered by, and its JSON.
type Entries = BTreeMap<String, Bytes>;

/// All skills of a server.
#[derive(Debug, Default)]
pub(crate) struct Skills {
    /// By the URI of their `SKILL.md`.
    skills: Entries,
    /// Members of the `resources/read` result of each file.
    files: HashMap<String, Bytes>,
    /// The entries of each folder, by their names.
    folders: HashMap<String, Entries>,
    /// Entries of `resources/list`.
    listed: Entries,
}

impl Skills {
    /// Serves `skills`.
    ///
    /// # Errors
    /// A skill that clients would refuse, or two at one place: says which, why, and what would be right.
    pub(crate) fn new(skills: Vec<Skill>) -> Result<Self, String> {
        let mut set = Self::default();
        // In the order of their paths: what a skill inside another says of its own files comes last and stays.
        for checked in check::all(skills)?.into_values() {
            set.add(checked);
        }
        Ok(set)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.skills.is_empty()
    }

    /// Members of a `skills/list` result: the page at `cursor`, or the first. `None` for a cursor that is not ours.
    pub(crate) fn list(&self, cursor: Option<&str>, page_entries_max: usize) -> Option<Bytes> {
        page("skills", &self.skills, SKILLS_CURSOR, cursor, page_entries_max)
    }

    /// Members of the `skills/get` result; `None` when no skill has its `SKILL.md` at `uri`.
    pub(crate) fn get(&self, uri: &str) -> Option<Bytes> {
        let entry = self.skills.get(uri)?;
        Some([b"\"skill\":", &entry[..]].concat().into())
    }

    /// Members of a `resources/directory/read` result; `None` when `uri` is no folder, or for a cursor that is not ours.
    pub(crate) fn directory(&self, uri: &str, cursor: Option<&str>, page_entries_max: usize) -> Option<Bytes> {
        page("resources", self.folders.get(uri)?, FOLDER_CURSOR, cursor, page_entries_max)
    }

    /// Members of the `resources/read` result; `None` when no file is at `uri`.
    pub(crate) fn read(&self, uri: &str) -> Option<Bytes> {
        self.files.get(uri).cloned()
    }

    /// Entries for `resources/list`, in the order of their URIs: each skill's `SKILL.md`. The other files are read by
    /// the URIs that a skill's entry names; listed here they would only crowd out what else a server has.
    pub(crate) fn resource_entries(&self) -> impl Iterator<Item = (&String, &Bytes)> {
        self.listed.iter()
    }

    fn add(&mut self, checked: Checked) {
        let Checked { path: folder, skill, files } = checked;
        let uri_of = |path: &str| uri(&format!("{folder}/{path}"));
        let mut manifest = Vec::with_capacity(files.len());
        for (path, file) in files {
            let uri = uri_of(&path);
            manifest.push(json!({ "uri": uri, "digest": file.digest, "size": file.bytes.len() }));
            let entry = if path == SKILL_MD {
                json!({
                    "uri": uri, "name": skill.text("name"), "description": skill.text("description"),
                    "mimeType": file.mime_type, "size": file.bytes.len(),
                })
            } else {
                let name = path.rsplit('/').next().unwrap_or(&path);
                json!({ "uri": uri, "name": name, "mimeType": file.mime_type, "size": file.bytes.len() })
            };
            let entry = Bytes::from(entry.to_string());
            if path == SKILL_MD {
                self.listed.insert(uri.clone(), entry.clone());
            }
            self.place(&format!("{folder}/{path}"), entry);
            self.files.insert(uri.clone(), contents(&uri, file));
        }
        let uri = uri_of(SKILL_MD);
        let entry = json!({ "uri": uri, "frontmatter": skill.fields(), "resources": manifest });
        self.skills.insert(uri, entry.to_string().into());
    }

    /// Puts an entry into its folder, and that into its own, up to the first part of the path.
    fn place(&mut self, path: &str, entry: Bytes) {
        let (mut path, mut entry) = (path, entry);
        while let Some((folder, name)) = path.rsplit_once('/') {
            let folder_uri = uri(folder);
            let known = self.folders.contains_key(&folder_uri);
            self.folders.entry(folder_uri.clone()).or_default().insert(name.to_owned(), entry);
            if known {
                return;
            }
            let name = folder.rsplit('/').next().unwrap_or(folder);
            entry = json!({ "uri": folder_uri, "name": name, "mimeType": FOLDER_TYPE }).to_string().into();
            path = folder;
        }
    }
}

/// Members of one page of a list.
fn page(member: &str, entries: &Entries, form: &str, cursor: Option<&str>, page_entries_max: usize) -> Option<Bytes> {
    let after = match cursor {
        Some(cursor) => Some(read_cursor(form, cursor)?),
        None => None,
    };
    let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = entries.range::<str, _>((start, Bound::Unbounded)).peekable();
    let mut json = format!("\"{member}\":[").into_bytes();
    let (mut on_page, mut last) = (0, None);
    while on_page < page_entries_max.max(1) && json.len() < PAGE_BYTES_MAX {
        let Some((name, entry)) = rest.next() else { break };
        if on_page > 0 {
            json.push(b',');
        }
        json.extend_from_slice(entry);
        on_page += 1;
        last = Some(name);
    }
    json.push(b']');
    if let (Some(last), Some(_)) = (last, rest.peek()) {
        let next = URL_SAFE_NO_PAD.encode(format!("{form}{last}"));
        json.extend_from_slice(format!(",\"nextCursor\":\"{next}\"").as_bytes());
    }
    Some(json.into())
}

/// The name after which the page at `cursor` starts.
fn read_cursor(form: &str, cursor: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    text.strip_prefix(form).map(str::to_owned)
}

/// Members of the `resources/read` result of a file. Only what is text to the byte is sent as text, since clients
/// check the digest of what they get.
fn contents(uri: &str, file: CheckedFile) -> Bytes {
    let mut contents = json!({ "uri": uri, "mimeType": file.mime_type });
    match String::from_utf8(file.bytes) {
        Ok(text) if media::is_text(&file.mime_type) => contents["text"] = text.into(),
        Ok(text) => contents["blob"] = STANDARD.encode(text).into(),
        Err(not_text) => contents["blob"] = STANDARD.encode(not_text.as_bytes()).into(),
    }
    format!("\"contents\":[{contents}]").into()
}

/// The URI of a path: what RFC 3986 does not allow in a part of one is percent-encoded.
fn uri(path: &str) -> String {
    let mut uri = String::from("skill://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // A String takes what is written to it.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::skill::{FILES_MAX, frontmatter};

    fn object(members: &Bytes) -> Value {
        serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(members))).expect("members of an object")
    }

    fn pdf() -> Skill {
        Skill::new("pdf", "Fill forms")
            .body("# PDF")
            .field("license", "MIT")
            .file("templates/a b.md", "text/markdown", "é")
            .file("templates/eu/x.bin", "application/octet-stream", [0, 255])
            .file("run.py", "text/x-python", "print(1)")
    }

    fn set() -> Skills {
        Skills::new(vec![pdf(), Skill::new("refunds", "Pay back").below("acme/billing")]).unwrap()
    }

    fn uris(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|entry| entry["uri"].as_str().unwrap()).collect()
    }

    #[test]
    fn entries_have_the_fields_of_skill_md_and_all_files_with_digests() {
        let set = set();
        assert!(!set.is_empty() && Skills::new(Vec::new()).unwrap().is_empty());
        let list = object(&set.list(None, 100).unwrap());
        assert_eq!(uris(&list["skills"]), ["skill://acme/billing/refunds/SKILL.md", "skill://pdf/SKILL.md"]);
        assert_eq!(list.get("nextCursor"), None);
        let entry = &list["skills"][1];
        assert_eq!(object(&set.get("skill://pdf/SKILL.md").unwrap())["skill"], *entry);
        assert_eq!(entry["frontmatter"], json!({ "name": "pdf", "description": "Fill forms", "license": "MIT" }));
        let uris = uris(&entry["resources"]);
        let expected = ["SKILL.md", "run.py", "templates/a%20b.md", "templates/eu/x.bin"];
        assert_eq!(uris, expected.map(|path| format!("skill://pdf/{path}")));
        for file in entry["resources"].as_array().unwrap() {
            let read = object(&set.read(file["uri"].as_str().unwrap()).unwrap());
            let contents = &read["contents"][0];
            let bytes = match contents["text"].as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => STANDARD.decode(contents["blob"].as_str().unwrap()).unwrap(),
            };
            assert_eq!(contents["uri"], file["uri"]);
            assert_eq!(file["size"], bytes.len());
            assert_eq!(file["digest"], CheckedFile::new(String::new(), bytes).digest);
        }
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(CheckedFile::new(String::new(), Vec::new()).digest, empty);
    }

    #[test]
    fn what_is_read_is_text_or_a_blob_and_skill_md_says_its_fields() {
        let set = set();
        let skill_md = object(&set.read("skill://pdf/SKILL.md").unwrap());
        assert_eq!(skill_md["contents"][0]["mimeType"], "text/markdown");
        let text = skill_md["contents"][0]["text"].as_str().unwrap();
        assert_eq!(frontmatter::read(text).unwrap()["license"], "MIT");
        assert_eq!(object(&set.read("skill://pdf/templates/a%20b.md").unwrap())["contents"][0]["text"], "é");
        assert_eq!(object(&set.read("skill://pdf/templates/eu/x.bin").unwrap())["contents"][0]["blob"], "AP8=");
        let listed: Vec<Value> = set.resource_entries().map(|(_, e)| serde_json::from_slice(e).unwrap()).collect();
        assert_eq!(listed.len(), 2);
        let expected = json!({
            "uri": "skill://pdf/SKILL.md", "name": "pdf", "description": "Fill forms", "mimeType": "text/markdown",
            "size": text.len(),
        });
        assert_eq!(listed[1], expected);
    }

    #[test]
    fn only_the_uris_that_were_made_are_known() {
        let set = set();
        for uri in [
            "",
            "skill://",
            "skill://pdf",
            "skill://pdf/",
            "skill://pdf/templates",
            "skill://pdf/skill.md",
            "skill://PDF/SKILL.md",
            "SKILL://pdf/SKILL.md",
            "skill:///pdf/SKILL.md",
            "skill://pdf//SKILL.md",
            "skill://pdf/./SKILL.md",
            "skill://pdf/../pdf/SKILL.md",
            "skill://pdf/%2e%2e/pdf/SKILL.md",
            "skill://pdf/templates/../SKILL.md",
            "skill://pdf/SKILL.md#x",
            "skill://pdf/SKILL.md?x",
            "skill://pdf/SKILL.md/",
            "skill://pdf/SKILL.md\0",
            "skill://pdf/templates/a b.md",
            "file:///etc/passwd",
            "skill://pdf/../../etc/passwd",
        ] {
            assert!(set.get(uri).is_none() && set.read(uri).is_none(), "{uri}");
        }
        assert!(set.get("skill://pdf/run.py").is_none(), "a file is no skill");
    }

    #[test]
    fn folders_list_their_direct_children() {
        let set = set();
        let children = |uri: &str| {
            let list = object(&set.directory(uri, None, 100).unwrap_or_else(|| panic!("{uri} is a folder")));
            let entries = list["resources"].as_array().unwrap().clone();
            entries
                .iter()
                .map(|e| format!("{} {} {}", e["uri"], e["name"], e["mimeType"]).replace('"', ""))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            children("skill://pdf"),
            [
                "skill://pdf/SKILL.md pdf text/markdown",
                "skill://pdf/run.py run.py text/x-python",
                "skill://pdf/templates templates inode/directory",
            ]
        );
        assert_eq!(
            children("skill://pdf/templates"),
            ["skill://pdf/templates/a%20b.md a b.md text/markdown", "skill://pdf/templates/eu eu inode/directory"]
        );
        assert_eq!(children("skill://acme"), ["skill://acme/billing billing inode/directory"]);
        assert_eq!(children("skill://acme/billing"), ["skill://acme/billing/refunds refunds inode/directory"]);
        for uri in [
            "skill://",
            "skill://pdf/",
            "skill://pdf/SKILL.md",
            "skill://pdf/none",
            "skill://pdf/../pdf",
            "skill://pdf/.",
            "",
        ] {
            assert!(set.directory(uri, None, 100).is_none(), "{uri}");
        }
    }

    #[test]
    fn pages_cover_a_list_once_and_only_our_cursors_are_taken() {
        let names: Vec<_> = (0..5).map(|n| format!("s{n}")).collect();
        let mut big = Skill::new("big", "d");
        for n in 0..5 {
            big = big.file(format!("f{n}"), "text/plain", "");
        }
        let skills = names.iter().map(|name| Skill::new(name, "d")).chain([big]);
        let set = Skills::new(skills.collect()).unwrap();
        let walk = |next_page: &dyn Fn(Option<&str>) -> Bytes, member: &str| {
            let (mut seen, mut cursor): (Vec<String>, Option<String>) = (Vec::new(), None);
            for _ in 0..10 {
                let list = object(&next_page(cursor.as_deref()));
                assert!(list[member].as_array().unwrap().len() <= 2);
                seen.extend(uris(&list[member]).into_iter().map(str::to_owned));
                match list["nextCursor"].as_str() {
                    Some(next) => cursor = Some(next.to_owned()),
                    None => return (seen, cursor.unwrap()),
                }
            }
            panic!("the list does not end");
        };
        let (seen, skills_cursor) = walk(&|cursor| set.list(cursor, 2).unwrap(), "skills");
        assert_eq!(seen.len(), 6);
        assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
        let (seen, folder_cursor) = walk(&|cursor| set.directory("skill://big", cursor, 2).unwrap(), "resources");
        assert_eq!(seen.len(), 6);

        assert!(set.list(Some(&folder_cursor), 2).is_none());
        assert!(set.directory("skill://big", Some(&skills_cursor), 2).is_none());
        for broken in ["", "x", "!!", "czE", &skills_cursor[1..]] {
            assert!(set.list(Some(broken), 2).is_none(), "{broken:?}");
        }
        let fewer = Skills::new(vec![Skill::new("s9", "d")]).unwrap();
        assert_eq!(uris(&object(&fewer.list(Some(&skills_cursor), 2).unwrap())["skills"]), ["skill://s9/SKILL.md"]);
        assert_eq!(object(&set.list(None, 0).unwrap())["skills"].as_array().unwrap().len(), 1, "a page has an entry");
    }

    #[test]
    fn a_page_ends_when_it_is_large() {
        let large = |n: usize| {
            (0..FILES_MAX - 1).fold(Skill::new(&format!("s{n:02}"), "d"), |skill, f| {
                skill.file(format!("{}{f}", "x".repeat(200)), "text/plain", "")
            })
        };
        let set = Skills::new((0..10).map(large).collect()).unwrap();
        let first = set.list(None, 100).unwrap();
        assert!(first.len() < 2 * PAGE_BYTES_MAX, "{}", first.len());
        let list = object(&first);
        assert!((1..10).contains(&list["skills"].as_array().unwrap().len()) && list["nextCursor"].is_string());
    }

    #[test]
    fn a_skill_inside_another_has_its_own_entry_and_the_same_files() {
        let inner = || Skill::new("inner", "Within").file("x", "text/plain", "1");
        let inner_md = inner().skill_md();
        let outer = || Skill::new("outer", "Around").file("inner/SKILL.md", "text/markdown", inner_md.as_str());
        for (says, skills) in [
            ("their files differ", vec![outer(), inner().below("outer")]),
            ("their files differ", vec![Skill::new("outer", "d"), inner().below("outer")]),
            ("their files differ", vec![outer().file("inner/x", "text/plain", "2"), inner().below("outer")]),
            (
                "their files differ",
                vec![Skill::new("outer", "d").file("a", "text/plain", ""), inner().below("outer/a")],
            ),
        ] {
            assert!(Skills::new(skills).unwrap_err().contains(says));
        }
        let set = Skills::new(vec![inner().below("outer"), outer().file("inner/x", "text/plain", "1")]).unwrap();
        let list = object(&set.list(None, 9).unwrap());
        assert_eq!(uris(&list["skills"]), ["skill://outer/SKILL.md", "skill://outer/inner/SKILL.md"]);
        assert_eq!(list["skills"][0]["resources"].as_array().unwrap().len(), 3);
        let folder = object(&set.directory("skill://outer/inner", None, 9).unwrap());
        assert_eq!(folder["resources"][0]["name"], "inner", "its SKILL.md is named as the skill");
    }

    #[test]
    fn names_that_look_like_other_values_stay_text() {
        for name in ["123", "null", "true", "1e3", "0x1f", "no"] {
            let set = Skills::new(vec![Skill::new(name, "yes").field("license", "1.0")]).unwrap();
            let entry = object(&set.list(None, 1).unwrap())["skills"][0]["frontmatter"].clone();
            assert_eq!(entry, json!({ "name": name, "description": "yes", "license": "1.0" }));
        }
    }
}
