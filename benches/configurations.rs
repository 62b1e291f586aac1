//! Configurations side by side, on this host: `cargo bench --bench configurations` compares sizes of the pool and of its
//! queue, its three policies, numbers of I/O threads, and the cache on and off; `-- --tuning FILE` (more than once) adds
//! your own. Each group has the load that shows its difference, in turns over several rounds. The tables go to standard
//! output, the plots and all figures to target/configurations/. `--quick` makes every stretch shorter.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a bench tells what it found

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Configurations that are compared under one load.
struct Group {
    name: &'static str,
    load: &'static [&'static str],
    /// A name for each, and its settings.
    configurations: &'static [(&'static str, &'static str)],
}

const BURN: &[&str] = &["--tool", "burn", "--arguments", r#"{"ms":2}"#, "--connections", "64"];
const SHORT: &[&str] = &["--connections", "64"];
/// More than two cores can do of calls of 2 ms, so that the queue is full.
const TOO_MUCH: &[&str] =
    &["--tool", "burn", "--arguments", r#"{"ms":2}"#, "--connections", "500", "--rate", "1500", "--timeout", "10s"];

const GROUPS: &[Group] = &[
    Group {
        name: "pool-threads",
        load: BURN,
        configurations: &[
            ("cores", ""),
            ("one", "[pool]\nthreads = 1\nthreads_max = 1\n"),
            ("eight", "[pool]\nthreads = 8\nthreads_max = 8\n"),
        ],
    },
    Group {
        name: "pool-queue",
        load: TOO_MUCH,
        configurations: &[
            ("1000", "[pool]\non_full = \"reject\"\n"),
            ("100", "[pool]\nqueue_max = 100\non_full = \"reject\"\n"),
            ("10", "[pool]\nqueue_max = 10\non_full = \"reject\"\n"),
            ("waits 10 ms", "[pool]\nqueue_wait_ms_max = 10\non_full = \"reject\"\n"),
        ],
    },
    Group {
        name: "pool-policies",
        load: TOO_MUCH,
        configurations: &[
            ("caller-runs", "[pool]\nqueue_max = 20\non_full = \"caller-runs\"\n"),
            ("wait", "[pool]\nqueue_max = 20\non_full = \"wait\"\n"),
            ("reject", "[pool]\nqueue_max = 20\non_full = \"reject\"\n"),
        ],
    },
    Group {
        name: "pool-refusals",
        load: TOO_MUCH,
        configurations: &[
            ("gather 500 us", "[pool]\nqueue_max = 20\non_full = \"reject\"\n"),
            ("at once", "[pool]\nqueue_max = 20\non_full = \"reject\"\nrefusal_gather_us = 0\n"),
            ("gather 2 ms", "[pool]\nqueue_max = 20\non_full = \"reject\"\nrefusal_gather_us = 2000\n"),
        ],
    },
    Group {
        name: "io-threads",
        load: SHORT,
        configurations: &[
            ("cores", ""),
            ("one", "[runtime]\nio_threads = 1\n"),
            ("four", "[runtime]\nio_threads = 4\n"),
        ],
    },
    Group { name: "cache", load: BURN, configurations: &[("off", ""), ("on", "[tools.burn]\ncache_ttl_s = 600\n")] },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("configurations: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut own = Vec::new();
    let (mut quick, mut program) = (false, env!("CARGO_BIN_EXE_bigiron").to_owned());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--quick" => quick = true,
            "--tuning" => {
                let file = args.next().ok_or("--tuning needs a file")?;
                own.push(fs::canonicalize(&file).map_err(|error| format!("--tuning {file}: {error}"))?);
            }
            "--bigiron" => program = args.next().ok_or("--bigiron needs a program")?,
            other => return Err(format!("{other}: there are --tuning FILE, --quick and --bigiron PROGRAM").into()),
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/configurations");
    fs::create_dir_all(&folder)?;
    let duration = if quick { "2s" } else { "5s" };
    for group in GROUPS {
        let mut files = Vec::new();
        for (name, settings) in group.configurations {
            let file = folder.join(format!("{}-{name}.toml", group.name));
            fs::write(&file, settings)?;
            files.push(file);
        }
        compare(&program, &folder, group.name, group.load, &files, duration)?;
    }
    if own.len() == 1 {
        let defaults = folder.join("defaults.toml");
        fs::write(&defaults, "")?;
        own.insert(0, defaults);
    }
    if !own.is_empty() {
        for (name, load) in [("own-short", SHORT), ("own-burn", BURN)] {
            compare(&program, &folder, name, load, &own, duration)?;
        }
    }
    println!("\nplots and figures are in {}", folder.display());
    Ok(())
}

fn compare(program: &str, folder: &Path, name: &str, load: &[&str], files: &[PathBuf], duration: &str) -> Result<()> {
    println!("\n## {name}: {}\n", load.join(" "));
    let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    let mut command = Command::new(program);
    command.current_dir(files.first().and_then(|file| file.parent()).unwrap_or(folder));
    command.arg("bench").args(load).args(["--duration", duration, "--warmup", "1s"]);
    let same_folder = files.iter().all(|file| file.parent() == files[0].parent());
    for (file, name) in files.iter().zip(names) {
        command.arg("--tuning").arg(if same_folder { Path::new(name) } else { file });
    }
    command.arg("--svg").arg(folder.join(format!("{name}.svg")));
    command.arg("--json").arg(folder.join(format!("{name}.json")));
    if !command.status()?.success() {
        return Err(format!("{name} could not be measured").into());
    }
    Ok(())
}
