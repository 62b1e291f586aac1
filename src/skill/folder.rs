//! A skill's folder on disk: which files belong to it, read whole and once. Names that start with a dot are left out,
//! since what lies there was put there by tools and not for clients; links are not followed, and refused so that
//! nobody misses a file without being told.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, fstat, open, openat},
    io::Errno,
};

use super::{BYTES_MAX, FILES_MAX};

/// Folders in each other.
const DEPTH_MAX: usize = 16;
/// Names that are looked at, folders and left-out ones among them.
const NAMES_MAX: usize = 4 * FILES_MAX;

/// The files below `path`, as pairs of their path from there and their bytes, in the order of their paths.
pub(super) fn read(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => fault(path, "there is no such folder"),
        Errno::NOTDIR => fault(path, "this is a file; name the folder that SKILL.md is in"),
        errno => io::Error::new(io::Error::from(errno).kind(), format!("{}: {errno}", path.display())),
    })?;
    let mut walk = Walk { top: path, files: Vec::new(), names: 0, bytes: 0 };
    walk.folder(folder, "", 0)?;
    walk.files.sort();
    Ok(walk.files)
}

struct Walk<'a> {
    top: &'a Path,
    files: Vec<(String, Vec<u8>)>,
    names: usize,
    bytes: usize,
}

impl Walk<'_> {
    fn folder(&mut self, folder: OwnedFd, at: &str, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.fault(at, &format!("more than {DEPTH_MAX} folders in each other")));
        }
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            self.names += 1;
            if self.names > NAMES_MAX {
                return Err(self.fault(at, &format!("a skill's folder has at most {NAMES_MAX} names in it")));
            }
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let Ok(text) = name.to_str() else {
                return Err(self.fault(at, &format!("the name {name:?} is not UTF-8; rename it")));
            };
            let path = if at.is_empty() { text.to_owned() } else { format!("{at}/{text}") };
            // NONBLOCK: opening a pipe that nobody writes to must not wait; without effect on regular files.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let opened = openat(folder.as_fd(), name, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::LOOP => self.fault(&path, "this is a symbolic link, which is not followed; put the file here"),
                Errno::NXIO => self.fault(&path, "this is a pipe or socket; only regular files can be served"),
                errno => self.fault(&path, &errno.to_string()),
            })?;
            match FileType::from_raw_mode(fstat(&opened)?.st_mode) {
                FileType::Directory => self.folder(opened, &path, depth + 1)?,
                FileType::RegularFile => self.file(File::from(opened), path)?,
                _ => return Err(self.fault(&path, "this is not a regular file; only those can be served")),
            }
        }
        Ok(())
    }

    fn file(&mut self, file: File, path: String) -> io::Result<()> {
        if self.files.len() == FILES_MAX {
            return Err(self.fault("", &format!("there are more than {FILES_MAX} files; clients take no more")));
        }
        let mut bytes = Vec::new();
        let left = BYTES_MAX - self.bytes;
        file.take(left as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > left {
            return Err(self.fault("", &format!("its files have more than {BYTES_MAX} bytes; clients take no more")));
        }
        self.bytes += bytes.len();
        self.files.push((path, bytes));
        Ok(())
    }

    fn fault(&self, at: &str, message: &str) -> io::Error {
        fault(&if at.is_empty() { self.top.to_owned() } else { self.top.join(at) }, message)
    }
}

fn fault(path: &Path, message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, os::unix::fs::symlink};

    use rustix::fs::{CWD, mknodat};

    use super::*;

    fn told(path: &Path) -> String {
        read(path).expect_err("a fault").to_string()
    }

    #[test]
    fn files_come_with_their_paths_in_order_and_dotted_names_stay_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        fs::create_dir_all(dir.path().join(".git")).unwrap();
        fs::create_dir_all(dir.path().join("empty")).unwrap();
        for (path, text) in [("b/c/x", "1"), ("b/a", "2"), ("SKILL.md", "3"), (".git/config", "4"), ("b/.env", "5")] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        let files = read(dir.path()).unwrap();
        let seen: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        assert_eq!(seen, [("SKILL.md", &b"3"[..]), ("b/a", b"2"), ("b/c/x", b"1")]);
    }

    #[test]
    fn what_is_no_file_of_the_folder_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        type Make<'a> = &'a dyn Fn(&Path);
        let cases: [(&str, Make); 5] = [
            ("symbolic link", &|at| symlink(outside.path().join("secret"), at).unwrap()),
            ("symbolic link", &|at| symlink(outside.path(), at).unwrap()),
            ("symbolic link", &|at| symlink("SKILL.md", at).unwrap()),
            ("not a regular file", &|at| {
                mknodat(CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            }),
            ("pipe or socket", &|at| drop(std::os::unix::net::UnixListener::bind(at).unwrap())),
        ];
        for (says, make) in cases {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            make(&dir.path().join("sub/odd"));
            let told = told(dir.path());
            assert!(told.contains(says) && told.contains("sub/odd"), "{told}");
        }
        assert!(told(&outside.path().join("none")).contains("no such folder"));
        assert!(told(&outside.path().join("secret")).contains("this is a file"));
        fs::write(outside.path().join(OsStr::from_bytes(b"a\xff")), "").unwrap();
        assert!(told(outside.path()).contains("not UTF-8"));
    }

    #[test]
    fn a_folder_past_a_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..FILES_MAX {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert_eq!(read(dir.path()).unwrap().len(), FILES_MAX);
        fs::write(dir.path().join("more"), "").unwrap();
        assert!(told(dir.path()).contains("more than 512 files"));

        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("a")).unwrap().set_len(BYTES_MAX as u64).unwrap();
        assert_eq!(read(dir.path()).unwrap()[0].1.len(), BYTES_MAX);
        fs::write(dir.path().join("b"), "1").unwrap();
        assert!(told(dir.path()).contains("more than 16777216 bytes"));

        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/".repeat(DEPTH_MAX))).unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        fs::create_dir_all(dir.path().join("d/".repeat(DEPTH_MAX + 1))).unwrap();
        assert!(told(dir.path()).contains("folders in each other"));
    }
}
