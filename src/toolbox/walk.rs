//! Walking the tree beneath the root: regular files in the order of their names, without what `.gitignore` and
//! `.ignore` leave out, without hidden files, never through a link. Folders and ignore files are opened beneath the
//! root like every other file, so nothing that is swapped meanwhile leads outside. The matching of globs and ignore
//! rules is ripgrep's.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
    overrides::{Override, OverrideBuilder},
};
use rustix::fs::{AtFlags, FileType, statat};

use crate::{call::Ctx, error::CallError, toolbox::root::Root};

/// Folders below each other; deeper ones are left out.
const DEPTH_MAX: usize = 128;
/// How much of one ignore file is read.
const IGNORE_FILE_BYTES_MAX: u64 = 1 << 20;
/// Ignore files of a folder; a later one's rules win. They count outside a git checkout too: who wrote one there
/// meant it.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];
/// Globs of one call.
pub(super) const GLOBS_MAX: usize = 32;

/// The files below a folder.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    root: &'a Root,
    ctx: &'a Ctx,
    globs: Override,
    everything: bool,
    levels: Vec<Level>,
    /// Folders that could not be listed or lie too deep.
    pub(super) folders_skipped: u64,
}

/// One folder on the way down.
#[derive(Debug)]
struct Level {
    /// Path from the root with a slash at its end; empty for the root itself.
    path: Vec<u8>,
    /// What is left of its entries, the next one last.
    entries: Vec<(Vec<u8>, FileType)>,
    rules: Option<Gitignore>,
}

/// The globs of a call: `*.rs` takes in, `!target/**` leaves out.
pub(super) fn globs(patterns: &[String]) -> Result<Override, CallError> {
    if patterns.len() > GLOBS_MAX {
        return Err(CallError::tool(format!("{} globs are too many; give at most {GLOBS_MAX}", patterns.len())));
    }
    let mut builder = OverrideBuilder::new("");
    for pattern in patterns {
        if pattern.is_empty() {
            return Err(CallError::tool("a glob is empty; write one such as \"*.rs\", or leave it out"));
        }
        builder.add(pattern).map_err(|error| glob_fault(pattern, &error))?;
    }
    builder.build().map_err(|error| CallError::tool(format!("the globs cannot be used together: {error}")))
}

fn glob_fault(pattern: &str, error: &ignore::Error) -> CallError {
    CallError::tool(format!(
        "{pattern:?} is not a glob: {error}; write for example \"*.rs\", \"src/**\" or \"!target/**\""
    ))
}

impl<'a> Walk<'a> {
    /// Starts at `folder`, a path that was checked (empty for the root). What is ignored or hidden itself is walked
    /// when it is asked for by name; below it the rules count, those of the folders above it too.
    pub(super) fn new(root: &'a Root, ctx: &'a Ctx, folder: &str, globs: Override, everything: bool) -> Self {
        let mut walk = Self { root, ctx, globs, everything, levels: Vec::new(), folders_skipped: 0 };
        let mut path = Vec::new();
        for part in folder.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let rules = walk.rules_of(&path);
            walk.levels.push(Level { path: path.clone(), entries: Vec::new(), rules });
            path.extend_from_slice(part.as_bytes());
            path.push(b'/');
        }
        walk.enter(path);
        walk
    }

    fn enter(&mut self, path: Vec<u8>) {
        if self.levels.len() >= DEPTH_MAX {
            self.folders_skipped += 1;
            return;
        }
        let Some(entries) = self.entries_of(&path) else {
            self.folders_skipped += 1;
            return;
        };
        let rules = self.rules_of(&path);
        self.levels.push(Level { path, entries, rules });
    }

    /// The entries that can be walked, sorted against their names, since they are taken from the end.
    fn entries_of(&self, path: &[u8]) -> Option<Vec<(Vec<u8>, FileType)>> {
        let mut dir = self.root.list(path)?;
        let mut entries = Vec::new();
        while let Some(Ok(entry)) = dir.read() {
            let name = entry.file_name();
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let Ok(fd) = dir.fd() else { continue };
                let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let name = name.to_bytes();
            let hidden = name.starts_with(b".") && (!self.everything || matches!(name, b"." | b".." | b".git"));
            if !hidden && matches!(kind, FileType::RegularFile | FileType::Directory) {
                entries.push((name.to_vec(), kind));
            }
        }
        entries.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        Some(entries)
    }

    fn rules_of(&self, folder: &[u8]) -> Option<Gitignore> {
        if self.everything {
            return None;
        }
        let mut builder = GitignoreBuilder::new("");
        let mut found = folder.is_empty() && self.add_rules(&mut builder, b".git/info/exclude");
        for name in IGNORE_FILES {
            found |= self.add_rules(&mut builder, &[folder, name.as_bytes()].concat());
        }
        found.then(|| builder.build().ok()).flatten()
    }

    fn add_rules(&self, builder: &mut GitignoreBuilder, path: &[u8]) -> bool {
        let Some(file) = self.root.open_found(path) else { return false };
        for line in BufReader::new(file.take(IGNORE_FILE_BYTES_MAX)).split(b'\n').map_while(Result::ok) {
            // Like git, a rule that cannot be read rules nothing.
            let _ = builder.add_line(None, String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
        true
    }

    /// The globs decide first; then the rules of the nearest folder that says something.
    fn wanted(&self, path: &[u8], is_folder: bool) -> bool {
        match self.globs.matched(as_path(path), is_folder) {
            Match::Ignore(_) => return false,
            Match::Whitelist(_) if !is_folder => return true,
            _ => {}
        }
        for level in self.levels.iter().rev() {
            let Some(rules) = &level.rules else { continue };
            match rules.matched(as_path(&path[level.path.len()..]), is_folder) {
                Match::Ignore(_) => return false,
                Match::Whitelist(_) => return true,
                Match::None => {}
            }
        }
        true
    }
}

impl Iterator for Walk<'_> {
    type Item = Vec<u8>;

    /// The path of the next file. Ends early when the call is cancelled; the caller asks its context which it was.
    fn next(&mut self) -> Option<Vec<u8>> {
        let mut looked = 0_u32;
        loop {
            let level = self.levels.last_mut()?;
            let Some((name, kind)) = level.entries.pop() else {
                self.levels.pop();
                continue;
            };
            let mut path = [level.path.as_slice(), &name].concat();
            looked += 1;
            if looked.is_multiple_of(64) && self.ctx.is_cancelled() {
                return None;
            }
            let is_folder = kind == FileType::Directory;
            if !self.wanted(&path, is_folder) {
                continue;
            }
            if !is_folder {
                return Some(path);
            }
            path.push(b'/');
            self.enter(path);
        }
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::toolbox::tests::{ctx, folder, root_of};

    fn paths(root: &Root, start: &str, patterns: &[&str], everything: bool) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(|&p| p.into()).collect();
        let ctx = ctx();
        let walk = Walk::new(root, &ctx, start, globs(&patterns).expect("globs"), everything);
        walk.map(|path| String::from_utf8(path).expect("text")).collect()
    }

    #[test]
    fn the_walk_keeps_the_rules() {
        let dir = folder(&[
            (".gitignore", b"/target\n*.log\n!keep.log\nbuild/\n"),
            (".git/config", b""),
            (".git/info/exclude", b"private.txt\n"),
            (".hidden", b""),
            (".github/ci.yml", b""),
            ("a.rs", b""),
            ("b.log", b""),
            ("keep.log", b""),
            ("private.txt", b""),
            ("src/.gitignore", b"gen.rs\r\n!b.log\n"),
            ("src/b.log", b""),
            ("src/gen.rs", b""),
            ("src/build/x", b""),
            ("src/sub/.ignore", b"!gen.rs\n"),
            ("src/sub/gen.rs", b""),
            ("src/sub/target/x", b""),
            ("target/debug/x", b""),
            ("z-a", b""),
            ("z/a", b""),
        ]);
        symlink("src", dir.path().join("link")).unwrap();
        symlink("a.rs", dir.path().join("link.rs")).unwrap();
        let root = root_of(&dir);
        let all = ["a.rs", "keep.log", "src/b.log", "src/sub/gen.rs", "src/sub/target/x", "z/a", "z-a"];
        assert_eq!(paths(&root, "", &[], false), all);
        assert_eq!(paths(&root, "src", &[], false), ["src/b.log", "src/sub/gen.rs", "src/sub/target/x"]);
        assert_eq!(paths(&root, "./src//sub/", &[], false), ["src/sub/gen.rs", "src/sub/target/x"]);
        assert_eq!(paths(&root, "", &["*.rs"], false), ["a.rs", "src/gen.rs", "src/sub/gen.rs"], "a glob is explicit");
        assert_eq!(paths(&root, "", &["!src/**", "!*.log"], false), ["a.rs", "z/a", "z-a"]);
        assert_eq!(paths(&root, "target", &[], false), ["target/debug/x"], "asked for by name");
        assert_eq!(paths(&root, ".github", &[], false), [".github/ci.yml"]);
        let everything = paths(&root, "", &[], true);
        assert!(everything.iter().any(|p| p == ".hidden") && everything.iter().any(|p| p == "target/debug/x"));
        assert!(!everything.iter().any(|p| p.starts_with(".git/") || p.starts_with("link")), "{everything:?}");
    }

    #[test]
    fn globs_that_cannot_be_are_named() {
        for bad in ["a[", ""] {
            assert!(matches!(globs(&[bad.into()]), Err(CallError::Tool(_))), "{bad:?}");
        }
        assert!(globs(&vec!["*".into(); GLOBS_MAX + 1]).is_err());
        assert!(globs(&vec!["*".into(); GLOBS_MAX]).is_ok());
    }
}
