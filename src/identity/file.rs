//! Files that hold secrets: read only where nobody else can have written or read them, replaced as a whole, one writer
//! at a time.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Gid, OFlags, Uid, fchown, flock};

/// Who may do what to a file that holds secrets: its owner, and nobody else.
const MODE: u32 = 0o600;

/// By what a file is known to be another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file's content, and what the file was when it was read.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) stamp: Stamp,
    metadata: Metadata,
}

/// What the file is at the moment.
pub(crate) fn stamp(path: &Path) -> Result<Stamp, String> {
    fs::metadata(path).map(|metadata| Stamp::of(&metadata)).map_err(|error| failed(path, "be read", &error))
}

/// Reads a plain file of at most so many bytes.
pub(crate) fn read(path: &Path, bytes_max: usize) -> Result<Content, String> {
    let failed = |error| failed(path, "be read", &error);
    // Not blocking: a pipe without a writer would hold us up for ever.
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    // Of what is open, and not of the path, which may be another file by now.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{} is no plain file", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(format!("{} has more than {bytes_max} bytes", path.display()));
    }
    Ok(Content { bytes, stamp: Stamp::of(&metadata), metadata })
}

impl Content {
    /// Refuses a file that others could have read or written: what it says is not ours.
    pub(super) fn check_private(&self, path: &Path) -> Result<(), String> {
        let own = rustix::process::geteuid().as_raw();
        check(path, self.metadata.mode(), self.metadata.uid(), own)
    }

    /// Refuses a file that all could have read or written. Its group may read it: that is how keys of certificates are
    /// shared by the servers of a host.
    pub(crate) fn check_not_public(&self, path: &Path) -> Result<(), String> {
        let own = rustix::process::geteuid().as_raw();
        let mode = self.metadata.mode();
        // A mode that is wrong all the same is shown as it is.
        let judged = if mode & 0o037 == 0 { mode & !0o040 } else { mode };
        check(path, judged, self.metadata.uid(), own)
    }

    /// Refuses a file that others could have written. All may read it: what it says is no secret.
    pub(super) fn check_ours(&self, path: &Path) -> Result<(), String> {
        let own = rustix::process::geteuid().as_raw();
        check(path, without_readers(self.metadata.mode()), self.metadata.uid(), own)
    }

    /// The same as `check_private` for a file that is only to be changed, which root may do for the user whose it is.
    pub(super) fn check_changeable(&self, path: &Path) -> Result<(), String> {
        let own = rustix::process::geteuid();
        let owner = if own.is_root() { own.as_raw() } else { self.metadata.uid() };
        check(path, self.metadata.mode(), owner, own.as_raw())
    }
}

/// A mode as it is judged where all may read; one that is wrong all the same is shown as it is.
fn without_readers(mode: u32) -> u32 {
    if mode & 0o022 == 0 { mode & !0o077 } else { mode }
}

fn check(path: &Path, mode: u32, owner: u32, own: u32) -> Result<(), String> {
    let path = path.display();
    if owner != own && owner != 0 {
        return Err(format!(
            "{path} belongs to the user {owner}, who could put keys into it; it must be ours ({own}) or root's: chown {own} \
             {path}"
        ));
    }
    if mode & 0o077 != 0 {
        let what = if mode & 0o022 != 0 { "written" } else { "read" };
        let mode = mode & 0o777;
        return Err(format!("{path} has the mode {mode:04o}, so that it can be {what} by others: chmod 600 {path}"));
    }
    Ok(())
}

/// Holds others off who would change the same file, until it is dropped. The lock is on a file beside it, since the
/// file itself is replaced.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for its turn: who holds it writes one small file.
    pub(super) fn take(path: &Path) -> Result<Self, String> {
        let folder = folder_of(path);
        if !folder.exists() {
            return Err(format!("the folder {} is not there; make it first", folder.display()));
        }
        let owner = owner_of(path);
        let path = beside(path, ".lock")?;
        let failed = |error| failed(&path, "be locked", &error);
        let flags = (OFlags::CLOEXEC | OFlags::NOFOLLOW).bits().cast_signed();
        let mut options = OpenOptions::new();
        options.write(true).mode(MODE).custom_flags(flags);
        // Only what is made here is given away: another file may have been put there under that name.
        let file = match options.clone().create_new(true).open(&path) {
            Ok(file) => give(&file, owner).map(|()| file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => options.open(&path),
            Err(error) => Err(error),
        };
        let file = file.map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Self { _file: file })
    }
}

/// Replaces a file, so that whoever reads it sees the old content or the new, also after a power cut.
pub(super) fn replace(path: &Path, bytes: &[u8], _lock: &Lock) -> Result<(), String> {
    let new = beside(path, ".new")?;
    let failed = |error| failed(&new, "be written", &error);
    // What a writer left who was killed. Nobody else writes: we have the lock.
    let _ = fs::remove_file(&new);
    let owner = owner_of(path);
    let written = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        give(&file, owner)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&new, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    renamed.map_err(failed)?;
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| self::failed(folder, "be synced", &error))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// User and group of a file; of its folder, where it has still to be made.
fn owner_of(path: &Path) -> Option<(u32, u32)> {
    let found = fs::metadata(path).or_else(|_| fs::metadata(folder_of(path))).ok()?;
    Some((found.uid(), found.gid()))
}

/// Root may write in the folder of a server that is not root, which must be able to read and lock its files afterwards.
/// Nobody else can give a file away, nor has to.
fn give(file: &File, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    match owner {
        Some((user, group)) if rustix::process::geteuid().is_root() && user != file.metadata()?.uid() => {
            Ok(fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?)
        }
        _ => Ok(()),
    }
}

/// The file that a link leads to, so that the link stays when the file is replaced.
pub(super) fn behind_links(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn beside(path: &Path, suffix: &str) -> Result<PathBuf, String> {
    let name = path.file_name().ok_or_else(|| format!("{} names no file", path.display()))?;
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(suffix);
    Ok(path.with_file_name(beside))
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> String {
    format!("{} cannot {what}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_are_trusted() {
        let path = Path::new("keys.toml");
        for (mode, owner) in [(0o100_600, 7), (0o100_400, 7), (0o100_600, 0), (0o100_700, 7)] {
            assert_eq!(check(path, mode, owner, 7), Ok(()), "{mode:o} {owner}");
        }
        for (mode, owner, expected) in [
            (0o100_640, 7, "0640, so that it can be read by others: chmod 600 keys.toml"),
            (0o100_604, 7, "0604, so that it can be read"),
            (0o100_620, 7, "0620, so that it can be written by others: chmod 600 keys.toml"),
            (0o100_666, 0, "0666, so that it can be written"),
            (0o100_600, 8, "belongs to the user 8"),
        ] {
            let error = check(path, mode, owner, 7).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_no_secret_may_be_read_by_all_and_written_by_nobody_else() {
        let path = Path::new("jwks.json");
        for mode in [0o100_644, 0o100_600, 0o100_444, 0o100_755] {
            assert_eq!(check(path, without_readers(mode), 7, 7), Ok(()), "{mode:o}");
        }
        for mode in [0o100_666, 0o100_664, 0o100_646] {
            let error = check(path, without_readers(mode), 7, 7).expect_err("refused");
            assert!(error.contains("written by others"), "{error}");
        }
    }

    #[test]
    fn what_is_no_plain_file_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(MODE);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        for path in [&pipe, folder.path()] {
            let error = read(path, 10).err().expect("refused");
            assert!(error.contains("no plain file"), "{error}");
        }
    }

    /// Only root can give files away, so that without root there is only the other half to see.
    #[test]
    fn what_root_makes_belongs_to_whose_the_folder_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let own = rustix::process::geteuid();
        let owner = if own.is_root() { 12_345 } else { own.as_raw() };
        std::os::unix::fs::chown(folder.path(), Some(owner), None).expect("chown");
        let lock = Lock::take(&path).expect("a lock");
        replace(&path, b"one", &lock).expect("replaced");
        for name in ["keys.toml", ".keys.toml.lock"] {
            assert_eq!(fs::metadata(folder.path().join(name)).expect("a file").uid(), owner, "{name}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Lock::take(Path::new("/nonexistent/keys.toml")).expect_err("no folder");
        assert_eq!(error, "the folder /nonexistent is not there; make it first");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_ours_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let lock = Lock::take(&path).expect("a lock");
        fs::write(folder.path().join(".keys.toml.new"), "left over").expect("written");
        replace(&path, b"one", &lock).expect("replaced");
        let before = read(&path, 3).expect("read");
        assert_eq!(before.check_private(&path), Ok(()));
        assert_eq!(before.metadata.mode() & 0o777, MODE);
        replace(&path, b"two", &lock).expect("replaced");
        assert_ne!(stamp(&path), Ok(before.stamp));
        assert_eq!(read(&path, 3).expect("read").bytes, b"two");
        assert!(read(&path, 2).is_err(), "more bytes than are let in");
        assert!(!folder.path().join(".keys.toml.new").exists());
    }
}
