//! What the cgroups of this process allow it: CPU time and memory, version 1 and 2. A limit counts wherever it stands
//! between the process and the root, so every ancestor is asked and the least wins.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Limits that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) cpu_millicores: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
}

/// Above this, version 1 means "no limit": it writes the largest page-aligned number.
const V1_NO_LIMIT: u64 = 1 << 60;

pub(super) fn read() -> Limits {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    limits(&membership, &mounts, |path| fs::read_to_string(path).ok())
}

/// One hierarchy in which the process is: `controllers` is empty for version 2.
struct Hierarchy {
    controllers: Vec<String>,
    /// Folders from the process's own group up to the mount point.
    folders: Vec<PathBuf>,
}

/// The arithmetic, with the files handed in as texts and a function.
fn limits(membership: &str, mounts: &str, file: impl Fn(&Path) -> Option<String>) -> Limits {
    let mut found = Limits::default();
    for hierarchy in membership.lines().filter_map(|line| hierarchy(line, mounts)) {
        let v2 = hierarchy.controllers.is_empty();
        let has = |controller: &str| v2 || hierarchy.controllers.iter().any(|c| c == controller);
        for folder in &hierarchy.folders {
            let read = |name: &str| file(&folder.join(name));
            if has("cpu") {
                let cpu = if v2 {
                    read("cpu.max").and_then(|text| cpu_v2(&text))
                } else {
                    cpu_v1(read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"))
                };
                found.cpu_millicores = least(found.cpu_millicores, cpu);
            }
            if has("memory") {
                let name = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
                let bytes = read(name).and_then(|text| text.trim().parse().ok()).filter(|b| *b < V1_NO_LIMIT);
                found.memory_bytes = least(found.memory_bytes, bytes);
            }
        }
    }
    found
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// `"200000 100000"`: microseconds of CPU time in each period of as many microseconds; `"max"` is no limit.
fn cpu_v2(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    millicores(quota.parse().ok()?, period.trim().parse().ok()?)
}

/// Version 1 has a file for each of the two; a quota of -1 is no limit (and does not parse).
fn cpu_v1(quota: Option<String>, period: Option<String>) -> Option<u64> {
    millicores(quota?.trim().parse().ok()?, period?.trim().parse().ok()?)
}

fn millicores(quota_us: u64, period_us: u64) -> Option<u64> {
    quota_us.checked_mul(1000)?.checked_div(period_us)
}

/// Reads a line of `/proc/self/cgroup` (`4:memory:/a/b`, or `0::/a/b` for version 2) and finds the folders that it
/// means among the mounts.
fn hierarchy(line: &str, mounts: &str) -> Option<Hierarchy> {
    let mut fields = line.splitn(3, ':').skip(1);
    let controllers: Vec<String> = fields.next()?.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let group = fields.next()?;
    let (root, mount) = mounts.lines().find_map(|line| mount_of(line, &controllers))?;
    // A container often sees its own group as the root of the mount while the kernel names it from the host's root;
    // the mount point itself is then the right folder.
    let below = Path::new(group).strip_prefix(&root).unwrap_or_else(|_| Path::new(""));
    let own = mount.join(below);
    let folders = own.ancestors().take_while(|p| p.starts_with(&mount)).map(Path::to_owned).collect();
    Some(Hierarchy { controllers, folders })
}

/// Root and mount point of a line of `/proc/self/mountinfo`, when it is the hierarchy of `controllers`.
fn mount_of(line: &str, controllers: &[String]) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, mount) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let is_it = match kind {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => !controllers.is_empty() && controllers.iter().all(|c| options.split(',').any(|o| o == c)),
        _ => false,
    };
    is_it.then(|| (root.into(), mount.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn of(membership: &str, mounts: &str, files: &[(&str, &str)]) -> (Option<u64>, Option<u64>) {
        let found = limits(membership, mounts, |path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        });
        (found.cpu_millicores, found.memory_bytes)
    }

    #[test]
    fn version_2() {
        let own = "0::/system.slice/bigiron.service\n";
        assert_eq!(of(own, V2_MOUNT, &[]), (None, None), "no files, no limits");
        let both = [
            ("/sys/fs/cgroup/system.slice/bigiron.service/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/system.slice/bigiron.service/memory.max", "2147483648\n"),
        ];
        assert_eq!(of(own, V2_MOUNT, &both), (Some(1500), Some(2 << 30)));
        let parent = [
            ("/sys/fs/cgroup/system.slice/bigiron.service/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/bigiron.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "1024\n"),
        ];
        assert_eq!(of(own, V2_MOUNT, &parent), (Some(4000), Some(1024)), "a parent's limit counts");
        assert_eq!(
            of(own, V2_MOUNT, &[("/sys/fs/cgroup/system.slice/cpu.max", "1 0")]),
            (None, None),
            "no division by 0"
        );
    }

    #[test]
    fn version_2_seen_from_inside_a_container() {
        let mounts = "29 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let files = [("/sys/fs/cgroup/cpu.max", "50000 100000"), ("/sys/fs/cgroup/memory.max", "4096")];
        assert_eq!(of("0::/docker/abc\n", mounts, &files), (Some(500), Some(4096)));
        assert_eq!(of("0::/elsewhere\n", mounts, &files), (Some(500), Some(4096)));
    }

    #[test]
    fn version_1() {
        let own = "4:memory:/job/1\n1:cpu,cpuacct:/\n0::/\n";
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/job/1/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n"),
        ];
        assert_eq!(of(own, V1_MOUNTS, &files), (Some(3000), Some(1 << 30)));
        let unlimited = [
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(of(own, V1_MOUNTS, &unlimited), (None, None));
    }

    #[test]
    fn lines_that_are_not_understood_are_passed_over() {
        for (membership, mounts) in
            [("", ""), ("x", "y"), ("0::", V2_MOUNT), ("::::", " - \n - cgroup2\n"), ("0::/a", "1 - cgroup2")]
        {
            assert_eq!(of(membership, mounts, &[]), (None, None), "{membership:?} {mounts:?}");
        }
    }
}
