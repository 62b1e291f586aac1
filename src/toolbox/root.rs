//! The confinement: a folder opened once, and the only way from a path that an agent wrote to an open file. What may
//! be reached is decided by the kernel (`openat2` beneath the folder, no links), never by comparing paths; the checks
//! of the text here only make errors that an agent can act on.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2, readlinkat},
    io::Errno,
};

use crate::error::CallError;

/// `openat2` gives up when the tree is renamed under it; it says to try again.
const RACE_RETRIES: usize = 16;
/// Names that an error offers in place of one that is not there.
const SIMILAR_MIN: f64 = 0.7;
/// Entries of a folder that are compared for that.
const SIMILAR_ENTRIES_MAX: usize = 2_000;

/// The folder that the toolbox can read.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
}

/// Which file it is and in which state: two equal ones have the same content, as far as the file system can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    modified_ns: i128,
}

/// What stands at a path.
#[derive(Debug)]
pub(super) enum Node {
    Folder,
    File(File, Identity),
}

impl Root {
    /// Opens the folder, and makes sure that the kernel can keep calls inside it.
    pub(super) fn open(path: &str) -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(path, flags, Mode::empty()).map_err(|errno| {
            let why = match errno {
                Errno::NOENT => "there is no such folder".to_owned(),
                Errno::NOTDIR => "it is not a folder".to_owned(),
                other => other.to_string(),
            };
            format!("toolbox.root {path:?}: {why}; set it to a folder that exists and can be read")
        })?;
        let root = Self { dir };
        match root.beneath(".", flags) {
            Ok(_) => Ok(root),
            Err(Errno::NOSYS) => Err("toolbox.root needs the system call openat2, which this kernel (or its sandbox) \
                 does not have: run on Linux 5.6 or later, or set toolbox.enabled = false"
                .into()),
            Err(errno) => Err(format!("toolbox.root {path:?} cannot be read: {errno}")),
        }
    }

    /// Opens a regular file for reading.
    pub(super) fn open_file(&self, path: &str) -> Result<(File, Identity), CallError> {
        match self.node(path)? {
            Node::File(file, identity) => Ok((file, identity)),
            Node::Folder => Err(self.refusal(path, Errno::ISDIR)),
        }
    }

    /// Opens what stands at `path`: a regular file, or a folder to be listed.
    pub(super) fn node(&self, path: &str) -> Result<Node, CallError> {
        check_words(path)?;
        // NONBLOCK: opening a pipe that nobody writes to must not wait; without effect on regular files.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = self.beneath(path, flags).map_err(|errno| self.refusal(path, errno))?;
        let stat = fstat(&fd).map_err(|errno| self.refusal(path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Node::File(File::from(fd), Identity::of(&stat))),
            FileType::Directory => Ok(Node::Folder),
            other => Err(CallError::tool(format!("{path:?} is {}; only regular files can be read", kind(other)))),
        }
    }

    /// Which file stands at `path`, without opening it for reading: closing a file that was opened gives up the locks
    /// that SQLite holds on it elsewhere in this process.
    pub(super) fn identify(&self, path: &str) -> Result<Identity, CallError> {
        check_words(path)?;
        let fd = self
            .beneath(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
            .map_err(|errno| self.refusal(path, errno))?;
        let stat = fstat(&fd).map_err(|errno| self.refusal(path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Identity::of(&stat)),
            FileType::Directory => Err(self.refusal(path, Errno::ISDIR)),
            other => Err(CallError::tool(format!("{path:?} is {}; only regular files can be read", kind(other)))),
        }
    }

    /// A regular file found by walking, whose name may be any bytes; `None` when it cannot be opened any more.
    pub(super) fn open_found(&self, path: &[u8]) -> Option<File> {
        let fd = self.beneath(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC).ok()?;
        let stat = fstat(&fd).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| File::from(fd))
    }

    /// The entries of a folder found by walking; `None` when it cannot be listed.
    pub(super) fn list(&self, path: &[u8]) -> Option<Dir> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let fd = self.beneath(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC).ok()?;
        Dir::new(fd).ok()
    }

    /// Where the folder is now, for SQLite, which opens files by name only.
    pub(super) fn location(&self) -> Result<PathBuf, CallError> {
        use std::os::{fd::AsRawFd, unix::ffi::OsStringExt};
        let link = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        let target = readlinkat(CWD, link, Vec::new()).map_err(|errno| {
            tracing::error!(%errno, "cannot tell where the toolbox folder is; is /proc mounted?");
            CallError::Internal
        })?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
    }

    fn beneath(&self, path: impl rustix::path::Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..RACE_RETRIES {
            result = openat2(self.dir.as_fd(), path, flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    fn refusal(&self, path: &str, errno: Errno) -> CallError {
        let shown = format!("{path:?}");
        CallError::tool(match errno {
            Errno::NOENT => match self.similar(path) {
                Some(similar) => format!("there is no file {shown}; did you mean {similar:?}?"),
                None => {
                    format!(
                        "there is no file {shown}; paths start at the served folder; search_text tells the paths of files by what is in them"
                    )
                }
            },
            Errno::NOTDIR => format!("a part of {shown} before the last is a file, not a folder; check the path"),
            Errno::ISDIR => format!("{shown} is a folder; give the path of a file in it"),
            Errno::LOOP => format!(
                "{shown} leads through a symbolic link, which is not followed; give the path of the file itself"
            ),
            Errno::XDEV => format!("{shown} leads outside the served folder; give a path inside it"),
            Errno::ACCESS | Errno::PERM => format!("the server has no permission to read {shown}; choose another file"),
            Errno::NAMETOOLONG => "the path is too long; give the path of a file inside the served folder".into(),
            Errno::NXIO => format!("{shown} is a pipe or socket; only regular files can be read"),
            Errno::AGAIN => format!("{shown} is being moved; try again"),
            Errno::MFILE | Errno::NFILE => "the server has no file handle left; try again in a moment".into(),
            other => format!("{shown} cannot be opened: {other}"),
        })
    }

    /// The entry most like the first part of `path` that is not there.
    fn similar(&self, path: &str) -> Option<String> {
        let mut folder = String::new();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let next = if folder.is_empty() { part.to_owned() } else { format!("{folder}/{part}") };
            if self.beneath(next.as_str(), OFlags::PATH | OFlags::CLOEXEC).is_ok() {
                folder = next;
                continue;
            }
            let entries = self.list(folder.as_bytes())?.take(SIMILAR_ENTRIES_MAX).filter_map(Result::ok);
            return entries
                .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
                .map(|name| (strsim::jaro_winkler(&name, part), name))
                .filter(|(likeness, name)| *likeness >= SIMILAR_MIN && !matches!(name.as_str(), "." | ".."))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, name)| if folder.is_empty() { name } else { format!("{folder}/{name}") });
        }
        None
    }
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        let modified_ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Self { device: stat.st_dev, inode: stat.st_ino, size, modified_ns }
    }
}

/// Says early what the kernel would refuse with fewer words, and refuses `..` even where it stays inside: an agent
/// that writes it has lost its place.
fn check_words(path: &str) -> Result<(), CallError> {
    let fault = if path.is_empty() {
        "the path is empty".to_owned()
    } else if path.contains('\0') {
        "the path contains a NUL character".to_owned()
    } else if path.starts_with('/') {
        format!("{path:?} is absolute")
    } else if path.split('/').any(|part| part == "..") {
        format!("{path:?} contains \"..\"")
    } else {
        return Ok(());
    };
    Err(CallError::tool(format!("{fault}; give a path relative to the served folder, such as \"src/main.rs\"")))
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => "a symbolic link",
        _ => "not a regular file",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn fault(result: Result<impl std::fmt::Debug, CallError>) -> String {
        match result {
            Err(CallError::Tool(text)) => text,
            other => panic!("expected a refusal for the agent, got {other:?}"),
        }
    }

    #[test]
    fn nothing_outside_is_reached() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("a/b")).unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        fs::write(outer.path().join("outside/secret"), "secret").unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(inner.join("a/file"), "inside").unwrap();
        symlink("../secret", inner.join("link_out")).unwrap();
        symlink(outer.path().join("secret"), inner.join("link_absolute")).unwrap();
        symlink("../outside", inner.join("dir_out")).unwrap();
        symlink("a/file", inner.join("link_in")).unwrap();
        symlink("a", inner.join("dir_in")).unwrap();
        symlink("/dev/null", inner.join("null")).unwrap();
        symlink("/proc/self/fd/0", inner.join("magic")).unwrap();
        rustix::fs::mknodat(CWD, inner.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(inner.join("socket")).unwrap();
        let root = Root::open(inner.to_str().unwrap()).unwrap();

        let mut text = String::new();
        root.open_file("a/file").unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert!(root.open_file("./a//b/../file").is_err(), "the text check comes first");
        assert!(root.open_file("./a//file").is_ok());

        for (path, says) in [
            ("", "empty"),
            ("..", "contains \"..\""),
            ("../secret", "contains \"..\""),
            ("a/../../secret", "contains \"..\""),
            ("a/../a/file", "contains \"..\""),
            ("/etc/passwd", "absolute"),
            ("//etc/passwd", "absolute"),
            ("a/file\0.txt", "NUL"),
            ("link_out", "symbolic link"),
            ("link_absolute", "symbolic link"),
            ("dir_out/secret", "symbolic link"),
            ("link_in", "symbolic link"),
            ("dir_in/file", "symbolic link"),
            ("null", "symbolic link"),
            ("magic", "symbolic link"),
            ("fifo", "a pipe"),
            ("socket", "socket"),
            ("a", "is a folder"),
            (".", "is a folder"),
            ("a/file/x", "not a folder"),
            ("a/fiel", "did you mean \"a/file\""),
            ("nothing_like_it", "no file"),
        ] {
            let told = fault(root.open_file(path));
            assert!(told.contains(says), "{path:?}: {told}");
            let told = fault(root.identify(path));
            assert!(told.contains(says), "identify {path:?}: {told}");
        }
        assert!(fault(root.open_file(&"x/".repeat(5000))).contains("too long"));
        // What the kernel says when the text check is not there.
        for path in ["../secret", "a/../../secret", "/etc/passwd", "dir_out/secret"] {
            assert!(root.open_found(path.as_bytes()).is_none(), "{path}");
        }
        assert!(root.list(b"dir_out").is_none() && root.list(b"..").is_none() && root.list(b"a").is_some());
    }

    #[test]
    fn a_folder_swapped_for_a_link_leads_nowhere() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        fs::write(inner.join("sub/x"), "inside").unwrap();
        fs::write(outer.path().join("x"), "outside").unwrap();
        let root = Root::open(inner.to_str().unwrap()).unwrap();
        assert!(root.open_file("sub/x").is_ok());
        fs::rename(inner.join("sub"), inner.join("old")).unwrap();
        symlink("..", inner.join("sub")).unwrap();
        assert!(fault(root.open_file("sub/x")).contains("symbolic link"));
        // The folder itself is held open: another one in its place is not the root.
        fs::rename(&inner, outer.path().join("moved")).unwrap();
        fs::create_dir(&inner).unwrap();
        assert!(root.open_file("old/x").is_ok());
        assert!(root.location().unwrap().ends_with("moved"));
    }

    #[test]
    fn a_root_that_cannot_be_is_refused_at_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(Root::open(dir.path().join("none").to_str().unwrap()).unwrap_err().contains("no such folder"));
        assert!(Root::open(dir.path().join("file").to_str().unwrap()).unwrap_err().contains("not a folder"));
    }
}
