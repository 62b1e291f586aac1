//! Files that are nobody's to read, and that lie where the toolbox reads for everybody who may call.

use std::path::{Path, PathBuf};

use super::Tuning;

/// A sentence for each such file, where the toolbox reads `root`.
pub(crate) fn readable(tuning: &Tuning, root: &Path) -> Vec<String> {
    // What is wrong with the folder is said elsewhere.
    let Ok(root) = root.canonicalize() else { return Vec::new() };
    let audit = if tuning.audit.file == "-" { "" } else { tuning.audit.file.as_str() };
    let secrets = [
        ("auth.keys_file", tuning.auth.keys_file.as_str()),
        ("auth.jwks_file", tuning.auth.jwks_file.as_str()),
        ("tls.key", tuning.tls.key.as_str()),
        ("audit.file", audit),
        ("cluster.password_file", tuning.cluster.password_file.as_str()),
        ("cluster.node_key_file", tuning.cluster.node_key_file.as_str()),
    ];
    let inside = secrets.into_iter().filter(|(_, file)| !file.is_empty() && whole(Path::new(file)).starts_with(&root));
    inside
        .map(|(setting, file)| {
            let elsewhere = if setting == "audit.file" { "/var/log/bigiron" } else { "/etc/bigiron" };
            format!(
                "{setting} is {file:?}, which lies in toolbox.root ({}): everybody who may call can read it there; move \
                 it elsewhere, such as to {elsewhere}, or name another root",
                root.display()
            )
        })
        .collect()
}

/// Where a file is, links followed, also when it has still to be made.
fn whole(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        file.file_name().map_or_else(|| folder.clone(), |name| folder.join(name))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn secrets_that_the_toolbox_can_read_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, elsewhere) = (folder.path().join("root"), folder.path().join("elsewhere"));
        fs::create_dir(&root).expect("a folder");
        fs::create_dir(&elsewhere).expect("a folder");
        fs::write(elsewhere.join("keys.toml"), "").expect("written");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut tuning = Tuning::default();
        tuning.auth.keys_file = text(elsewhere.join("keys.toml"));
        tuning.audit.file = "-".into();
        assert_eq!(readable(&tuning, &root), Vec::<String>::new());
        // One that is not there yet, by a way with a detour, and one behind a link.
        tuning.audit.file = text(elsewhere.join("../root/audit.log"));
        std::os::unix::fs::symlink(&root, elsewhere.join("link")).expect("a link");
        fs::write(root.join("us.key"), "").expect("written");
        tuning.tls.key = text(elsewhere.join("link/us.key"));
        let told = readable(&tuning, &root);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("tls.key is") && told[1].starts_with("audit.file is"), "{told:?}");
    }
}
