//! nginx in front of several instances, with the file that `deploy/` has for it: only ports and paths are others.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{redis::free_port, support::eventually};

const PROGRAM: &str = "/usr/sbin/nginx";

/// An nginx process in a folder of its own. Ends when dropped.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) addr: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    /// In front of three instances, by the upstream of this name.
    pub(crate) fn start(upstream: &str, ports: [u16; 3]) -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: run scripts/setup-tests.sh, or apt-get install nginx-light"
        );
        let folder = tempfile::tempdir().expect("a folder");
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx.conf");
        let mut text = std::fs::read_to_string(file).expect("deploy/nginx.conf");
        let mut put = |from: &str, to: &str| {
            assert!(text.contains(from), "deploy/nginx.conf has no {from:?}");
            text = text.replace(from, to);
        };
        let here = folder.path().display().to_string();
        put("/run/nginx.pid", &format!("{here}/pid"));
        put("/var/log/nginx/", &format!("{here}/"));
        put("127.0.0.1:8080", &addr.to_string());
        for (default, port) in [5000, 5010, 5020].into_iter().zip(ports) {
            put(&format!("127.0.0.1:{default} "), &format!("127.0.0.1:{port} "));
        }
        put("proxy_pass http://bigiron;", &format!("proxy_pass http://{upstream};"));
        // Where nginx keeps what it cannot hold in memory is built in, and needs rights that a test may not have.
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let paths: String = paths.iter().map(|path| format!("    {path}_temp_path {here}/{path};\n")).collect();
        put("http {\n", &format!("http {{\n{paths}"));
        std::fs::write(folder.path().join("nginx.conf"), text).expect("written");
        let mut command = Command::new(PROGRAM);
        command.args(["-p", &here, "-c", "nginx.conf", "-g", "daemon off;"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        eventually("nginx listens", || {
            let ended = child.try_wait().expect("a child of ours");
            let log = || std::fs::read_to_string(folder.path().join("error.log")).unwrap_or_default();
            assert!(ended.is_none(), "nginx has ended: {}", log());
            TcpStream::connect(addr).is_ok()
        });
        Self { child, addr, _folder: folder }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked to end, it ends its workers too; killed, it would leave them.
        let asked = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
