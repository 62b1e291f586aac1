//! The servers of a run: bigiron, the two bare hyper servers that mark the limit, stock rmcp in its two modes, tower-mcp,
//! and what the command line brings. How each is built and started, and which rows it takes part in.
//!
//! All of them get one core and mimalloc and log errors only, so that it is the servers that differ; with
//! `--system-allocator` rmcp and tower-mcp have what they come with. bigiron keeps every check of its default
//! configuration, and the peers have what their documentation gives them; a peer that were tuned by hand would
//! show another figure.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Result,
    allocations::ASKED,
    process::{Server, free_address},
    requests::Row,
    tools,
};

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Bigiron,
    /// hyper, the body parsed as `serde_json::Value`, fixed bytes answered.
    BareHyper,
    /// hyper, the body only read, fixed bytes answered: the floor of the rig.
    BareHyperFixed,
    /// rmcp without sessions, answering JSON: its fastest configuration.
    RmcpJson,
    /// rmcp as it comes: sessions for the older revisions, answers as SSE.
    RmcpSessions,
    /// tower-mcp as it comes: JSON, and sessions for the older revisions.
    TowerMcp,
    /// One that the command line brought, by its name.
    #[value(skip)]
    Other(&'static str),
}

impl Kind {
    /// All that are known beforehand.
    pub(crate) const ALL: [Self; 6] =
        [Self::Bigiron, Self::BareHyper, Self::BareHyperFixed, Self::RmcpJson, Self::RmcpSessions, Self::TowerMcp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bigiron => "bigiron",
            Self::BareHyper => "bare hyper, parsing",
            Self::BareHyperFixed => "bare hyper, fixed",
            Self::RmcpJson => "rmcp, stateless JSON",
            Self::RmcpSessions => "rmcp, as it comes",
            Self::TowerMcp => "tower-mcp",
            Self::Other(name) => name,
        }
    }

    fn short_name(self) -> &'static str {
        match self {
            Self::Bigiron => "bigiron",
            Self::BareHyper => "bare-hyper",
            Self::BareHyperFixed => "bare-hyper-fixed",
            Self::RmcpJson => "rmcp-json",
            Self::RmcpSessions => "rmcp-sessions",
            Self::TowerMcp => "tower-mcp",
            Self::Other(_) => "other",
        }
    }

    /// A server with one answer to everything, which it is given.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Self::BareHyper | Self::BareHyperFixed)
    }

    pub(crate) fn takes_part_in(self, row: Row) -> bool {
        match self {
            Self::RmcpJson => !row.has_session() && !row.needs_tools() && !row.is_refused(),
            Self::RmcpSessions | Self::TowerMcp | Self::Other(_) => !row.needs_tools() && !row.is_refused(),
            Self::Bigiron | Self::BareHyper | Self::BareHyperFixed => true,
        }
    }

    /// The rmcp that a row is compared with: the faster of its modes that serves the row.
    pub(crate) fn stock_for(row: Row) -> Self {
        if row.has_session() { Self::RmcpSessions } else { Self::RmcpJson }
    }
}

/// Where the programs and the files of a run are.
pub(crate) struct Rig {
    pub(crate) bigiron: PathBuf,
    pub(crate) peers: PathBuf,
    pub(crate) peer_threads: u16,
    /// Names and commands; `{listen}` and `{port}` in a command say where.
    pub(crate) others: Vec<(&'static str, String)>,
    /// Logs, and the bytes that plain servers answer.
    pub(crate) folder: PathBuf,
    pub(crate) server_core: usize,
    pub(crate) generator_core: usize,
}

impl Rig {
    /// Starts a server; a plain one answers with `answer`.
    pub(crate) fn start(&self, kind: Kind, row: Row, answer: &[u8]) -> Result<Server> {
        let address = free_address()?;
        let command = self.command(kind, row, answer, address)?;
        let log = self.folder.join(format!("{}.log", kind.short_name()));
        Server::start(command, address, self.server_core, self.generator_core, &log)
            .map_err(|error| format!("{}: {error}", kind.name()).into())
    }

    /// The same, counting allocations, and where it tells how many; none where that cannot be had.
    pub(crate) fn start_counting(&self, kind: Kind, row: Row, answer: &[u8]) -> Result<Option<(Server, SocketAddr)>> {
        let (address, told_at) = (free_address()?, free_address()?);
        let mut command = match kind {
            Kind::Other(_) => return Ok(None),
            Kind::Bigiron => self.tools_command(address, row)?, // the program itself has an allocator that does not count
            _ => self.command(kind, row, answer, address)?,
        };
        command.env(ASKED, told_at.to_string());
        let log = self.folder.join(format!("{}.counting.log", kind.short_name()));
        let server = Server::start(command, address, self.server_core, self.generator_core, &log)
            .map_err(|error| format!("{}: {error}", kind.name()))?;
        Ok(Some((server, told_at)))
    }

    fn command(&self, kind: Kind, row: Row, answer: &[u8], address: SocketAddr) -> Result<Command> {
        Ok(match kind {
            Kind::Bigiron if row.needs_tools() => self.tools_command(address, row)?,
            Kind::Bigiron => self.bigiron_command(address, row),
            Kind::BareHyper | Kind::BareHyperFixed => self.bare_command(kind, row, address, answer)?,
            Kind::RmcpJson | Kind::RmcpSessions => self.rmcp_command(kind, address),
            Kind::TowerMcp => self.peer_command("tower-mcp", address),
            Kind::Other(name) => self.other_command(name, address)?,
        })
    }

    fn bigiron_command(&self, address: SocketAddr, row: Row) -> Command {
        let mut command = Command::new(&self.bigiron);
        command.args(["serve", "--listen", &address.to_string()]);
        command.args(["--set", "server.admin_listen=", "--set", "log.level=error"]);
        command.args(row.settings().iter().flat_map(|set| ["--set", set]));
        // Away from any tuning.toml: the built-in defaults are what is measured.
        command.current_dir(&self.folder);
        command
    }

    fn tools_command(&self, address: SocketAddr, row: Row) -> Result<Command> {
        let mut command = Command::new(env::current_exe()?);
        command.args(tools::arguments(address)).current_dir(&self.folder);
        command.args(row.settings().iter().flat_map(|set| ["--set", set]));
        Ok(command)
    }

    fn bare_command(&self, kind: Kind, row: Row, address: SocketAddr, answer: &[u8]) -> Result<Command> {
        let body = self.folder.join("answer.json");
        fs::write(&body, answer)?;
        let mut command = self.peer_command("bare-hyper", address);
        command.arg("--body").arg(body).args(bare_arguments(row));
        if kind == Kind::BareHyperFixed {
            command.arg("--no-parse");
        }
        Ok(command)
    }

    fn rmcp_command(&self, kind: Kind, address: SocketAddr) -> Command {
        let mut command = self.peer_command("stock-rmcp", address);
        if kind == Kind::RmcpJson {
            command.arg("--stateless-json");
        }
        command
    }

    /// By the shell, which its command replaces with the server, so that its CPU time is the server's.
    fn other_command(&self, name: &str, address: SocketAddr) -> Result<Command> {
        let (_, command) = self.others.iter().find(|(other, _)| *other == name).ok_or("a server without a command")?;
        let (listen, port) = (address.to_string(), address.port().to_string());
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec {}", command.replace("{listen}", &listen).replace("{port}", &port)));
        Ok(shell)
    }

    fn peer_command(&self, name: &str, address: SocketAddr) -> Command {
        let mut command = Command::new(self.peers.join(name));
        command.args(["--threads", &self.peer_threads.to_string(), "--listen", &address.to_string()]);
        command
    }
}

/// What bare hyper has to be told to answer as bigiron does, besides the bytes.
pub(crate) fn bare_arguments(row: Row) -> Vec<String> {
    let mut arguments = vec!["--status".to_owned(), row.status().to_string()];
    if row == Row::RefusedSize {
        arguments.push("--unread".to_owned());
    }
    arguments
}

/// Builds the package beside this folder and says where its programs are. The first time takes minutes.
pub(crate) fn build_peers(target: &Path, features: &[&str]) -> Result<PathBuf> {
    let target = target.join("peers");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&target);
    let status = build.args(["--features", &features.join(",")]).status()?;
    if !status.success() {
        return Err(format!("the peers did not build ({status}): see benches/peers").into());
    }
    Ok(target.join("release"))
}
