//! The one skill of this server and its files, all in the program.

use rmcp::model::{
    DIRECTORY_MIME_TYPE, Resource, ResourceContents, Skill, SkillFrontmatter, SkillResource, SkillResources,
};

const NAME: &str = "release-notes";
const DESCRIPTION: &str =
    "Write notes for a release from its commits. Use when somebody asks what is new in a version.";
const LICENSE: &str = "MIT OR Apache-2.0";
/// The folder of the skill. `SKILL.md` lies in it.
const FOLDER: &str = "skill://release-notes";
const SKILL_MD: &str = "skill://release-notes/SKILL.md";
const STYLE_MD: &str = "skill://release-notes/references/style.md";
const MARKDOWN: &str = "text/markdown";

const INSTRUCTIONS: &str = "\
# Release notes

1. Read the commits since the last tag, oldest first.
2. Sort them by what they change for users. Leave out what changes nothing for them.
3. Write one line for each, as [references/style.md](references/style.md) says.
";
const STYLE: &str = "\
# Style

- What is new comes first, then what is different, then what is repaired.
- A line says what users can do now, not which file was edited.
- What needs work from users is marked as such, with the work it needs.
";

/// The file as clients read it. Its head has what `skill` says, nothing else.
fn skill_md() -> String {
    format!("---\nname: {NAME}\ndescription: {DESCRIPTION}\nlicense: {LICENSE}\n---\n\n{INSTRUCTIONS}")
}

fn text(uri: &str) -> Option<String> {
    match uri {
        SKILL_MD => Some(skill_md()),
        STYLE_MD => Some(STYLE.to_owned()),
        _ => None,
    }
}

pub(crate) fn skill() -> Skill {
    let files = [SKILL_MD, STYLE_MD]
        .iter()
        .filter_map(|uri| Some(SkillResource::from_bytes(*uri, text(uri)?.as_bytes())))
        .collect();
    let frontmatter = SkillFrontmatter::new(NAME, DESCRIPTION).with_field("license", LICENSE);
    Skill::new(SKILL_MD, frontmatter, SkillResources::Files(files))
}

/// The entry that the list of resources has for it.
pub(crate) fn resource() -> Resource {
    Resource::new(SKILL_MD, NAME).with_description(DESCRIPTION).with_mime_type(MARKDOWN)
}

/// One of its files, if it is one.
pub(crate) fn read(uri: &str) -> Option<ResourceContents> {
    Some(ResourceContents::text(text(uri)?, uri).with_mime_type(MARKDOWN))
}

/// What lies in one of its folders, if it is one. A slash at the end makes no difference.
pub(crate) fn directory(uri: &str) -> Option<Vec<Resource>> {
    let file = |uri, name| Resource::new(uri, name).with_mime_type(MARKDOWN);
    let folder = uri.strip_suffix('/').unwrap_or(uri).strip_prefix(FOLDER)?;
    match folder {
        "" => {
            let references = Resource::new(format!("{FOLDER}/references"), "references");
            Some(vec![file(SKILL_MD, "SKILL.md"), references.with_mime_type(DIRECTORY_MIME_TYPE)])
        }
        "/references" => Some(vec![file(STYLE_MD, "style.md")]),
        _ => None,
    }
}
