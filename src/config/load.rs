//! From the layers to settings that hold together: built-in defaults, then the file, the environment, `--set`, and
//! `--listen`. Nothing here changes anything or opens a socket, so `check` runs the same code as the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    Tuning, address,
    fault::{Fault, Faults},
    known::TOOLS,
    layers::{Layers, Origin, Origins},
    listing::{Setting, listing},
    nearest, relations,
    resolved::{Resolved, lower_to_host},
};
use crate::runtime::Host;

/// The file that is read when none is named and it is there.
const FILE_DEFAULT: &str = "tuning.toml";

/// Size of a file of settings. 100,000 tools with a section each come to about 6 MiB.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// What the operator gave.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--tuning`; without it `./tuning.toml` when that is there.
    pub file: Option<PathBuf>,
    /// All variables of the environment; those that are settings are picked out.
    pub environment: Vec<(OsString, OsString)>,
    /// Each `--set section.key=value`.
    pub sets: Vec<String>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--insecure-no-auth`: the operator knows that everybody who reaches the port may call.
    pub insecure_no_auth: bool,
}

/// Settings that hold together, and what they come to on this host.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings as they were written, zeros included.
    pub tuning: Tuning,
    /// What the zeros came to.
    pub resolved: Resolved,
    /// The host that they came to it on.
    pub host: Host,
    /// `server.listen`.
    pub listen: SocketAddr,
    /// `server.admin_listen`, unless it is switched off.
    pub admin_listen: Option<SocketAddr>,
    /// A listener may be reached from other hosts, and the operator said that this is meant.
    pub insecure_no_auth: bool,
    /// What the environment and the command line went over: the file that was read, or in words that there was none.
    pub base: String,
    origins: Origins,
}

/// There was no file.
const BASE_DEFAULT: &str = "built-in defaults";

impl Loaded {
    /// Reads the layers and checks how the settings relate.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn from_sources(sources: Sources, host: Host) -> Result<Self, Faults> {
        let mut layers = Layers::new();
        let mut base = BASE_DEFAULT.to_owned();
        match read_file(sources.file.as_deref()) {
            Ok(Some((name, text))) => {
                layers.file(&name, &text);
                base = whole_name(name);
            }
            Ok(None) => {}
            Err(fault) => layers.faults.push(fault),
        }
        layers.environment(sources.environment);
        for set in &sources.sets {
            layers.set(set);
        }
        if let Some(address) = &sources.listen {
            layers.listen(address);
        }
        let (tuning, origins) = layers.finish()?;
        Ok(Self { base, ..Self::build(tuning, origins, host, sources.insecure_no_auth)? })
    }

    /// Checks settings that a program made.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn from_program(tuning: Tuning, host: Host, insecure_no_auth: bool) -> Result<Self, Faults> {
        let values = |tuning: &Tuning| listing(tuning, &Origins::new(), None).into_iter().map(|s| (s.path, s.value));
        let defaults: BTreeMap<_, _> = values(&Tuning::default()).collect();
        let written = values(&tuning).filter(|(path, value)| defaults.get(path) != Some(value));
        let origins = written.map(|(path, _)| (path, Origin::Program)).collect();
        Ok(Self { base: "the program".into(), ..Self::build(tuning, origins, host, insecure_no_auth)? })
    }

    pub(super) fn build(
        mut tuning: Tuning,
        origins: Origins,
        host: Host,
        insecure_no_auth: bool,
    ) -> Result<Self, Faults> {
        let lowered = lower_to_host(&mut tuning, &host);
        let resolved = Resolved::of(&tuning, &host).with(lowered);
        let settings = listing(&tuning, &origins, Some(&resolved));
        relations::check(&relations::View {
            tuning: &tuning,
            resolved: &resolved,
            host: &host,
            settings: settings.iter().map(|s| (s.path.as_str(), s)).collect(),
            insecure_no_auth,
        })?;
        let listen = address::listener(&tuning.server.listen).map_err(|e| Fault::new("server.listen", e))?;
        let admin_listen = match tuning.server.admin_listen.as_str() {
            "" => None,
            text => Some(address::listener(text).map_err(|e| Fault::new("server.admin_listen", e))?),
        };
        Ok(Self { tuning, resolved, host, listen, admin_listen, insecure_no_auth, base: BASE_DEFAULT.into(), origins })
    }

    /// What works and is hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let kept = self.tuning.tools.iter().find(|(_, tool)| tool.cache_ttl_s.is_some());
        if let Some((name, _)) = kept
            && self.tuning.cache.bytes_max.0 == 0
        {
            warnings.push(format!(
                "cache.bytes_max = 0 ({}): no result is kept, although tools.{name}.cache_ttl_s is set ({})",
                self.origin("cache.bytes_max"),
                self.origin(&format!("{TOOLS}.{name}.cache_ttl_s")),
            ));
        }
        if self.tuning.cluster.is_on() && self.tuning.cluster.allow_unprotected {
            warnings.push(format!(
                "cluster.allow_unprotected = true ({}): whoever is on the way to Redis may read and change what \
                 instances share",
                self.origin("cluster.allow_unprotected"),
            ));
        }
        warnings
    }

    /// Whether everybody who calls is asked who he is.
    pub(crate) fn asks_who_calls(&self) -> bool {
        relations::asks_who_calls(&self.tuning)
    }

    /// Whether other hosts can reach the admin listener, which asks nobody who only reads.
    pub(crate) fn opens_admin_listener(&self) -> bool {
        let listen = &self.tuning.server.admin_listen;
        !listen.is_empty() && address::listener(listen).is_ok_and(|listen| !address::is_loopback(&listen))
    }

    /// Every setting, in the order of the file, with where it came from and what it came to.
    pub fn settings(&self) -> Vec<Setting> {
        listing(&self.tuning, &self.origins, Some(&self.resolved))
    }

    /// Where a setting (`limits.connections_max`) or a tool's section (`tools.read_file`) was written.
    pub fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or_default()
    }

    /// Refuses sections for tools that there are not: `names` are those that there are.
    ///
    /// # Errors
    /// Each such section with its place, and the name that comes nearest.
    pub fn check_tools<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), Faults> {
        let names: BTreeSet<&str> = names.collect();
        let mut faults = Faults::default();
        for name in self.tuning.tools.keys().filter(|name| !names.contains(name.as_str())) {
            if faults.is_full() {
                faults.push(Fault::new("", "")); // counted, and not worth a search for what comes nearest
                continue;
            }
            // Names in the environment are often written in upper case.
            let meant =
                nearest(name, names.iter().copied()).or_else(|| nearest(&name.to_lowercase(), names.iter().copied()));
            let hint = meant.map_or_else(String::new, |meant| format!("; did you mean [{TOOLS}.{meant}]?"));
            let path = format!("{TOOLS}.{name}");
            faults.push(Fault::new(self.origin(&path).to_string(), format!("[{path}]: no tool has this name{hint}")));
        }
        faults.or(())
    }

    /// A fault of the setting or tool's section at `path` that only a part could find. It is told with the place,
    /// as the others are.
    pub fn fault(&self, path: &str, message: impl Into<String>) -> Faults {
        match self.origin(path) {
            Origin::Default => Fault::new("", message).into(), // nobody wrote it, so there is no place to look at
            origin => Fault::new(origin.to_string(), message).into(),
        }
    }
}

/// The name that the file has from anywhere.
fn whole_name(name: String) -> String {
    std::path::absolute(&name).map_or(name, |path| path.display().to_string())
}

/// Name and text of the file, if there is one to be read.
fn read_file(named: Option<&Path>) -> Result<Option<(String, String)>, Fault> {
    let path = named.unwrap_or_else(|| Path::new(FILE_DEFAULT));
    let name = path.display().to_string();
    match read_text(path) {
        Ok(text) => Ok(Some((name, text))),
        Err(e) if named.is_none() && e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Fault::new(name, format!("this file of settings cannot be read: {e}"))),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}
