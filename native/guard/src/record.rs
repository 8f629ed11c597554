//! The two files that a guard leaves: who lives, and how it ended. Atomic and durable, so that a
//! runner that starts at any moment reads one whole record or none.

use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `guard.json`: written before the VMM's first instruction, removed only by the runner.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardRecord {
    pub version: u32,
    pub incarnation: String,
    pub guard_pid: i32,
    pub vmm_pid: i32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot: a pid alone may have a new owner.
    pub guard_start_time: u64,
    pub vmm_start_time: u64,
    /// A record of an earlier boot names nobody.
    pub boot_id: String,
    /// Descriptor of /dev/userfaultfd inside the VMM, which has no right to open it.
    pub userfaultfd_device_fd: Option<RawFd>,
    pub socket: String,
    pub failover: &'static str,
    pub started_at_ms: u64,
}

/// `exit.json`: written after the VMM was reaped.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    pub version: u32,
    pub incarnation: String,
    pub vmm_pid: i32,
    /// Exit code, `null` when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The lease had ended and the VMM stood still.
    pub lease_paused: bool,
    pub at_ms: u64,
}

/// Puts `record` at `path`: whole and on disk, or not at all.
pub fn write_durably(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let draft = path.with_extension("json.new");
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

/// Start time of a process, clock ticks since boot.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    start_time_of(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22; the name of the program, field 2, may hold anything, so it is counted from its end.
fn start_time_of(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Identity of this boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let stat = b"7 (a) R (x) b) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 99";
        assert_eq!(start_time_of(stat), Some(4242));
        for broken in [&b""[..], b"7 (a", b"7 (a) S 1", b"7 (\xff) S 1 2"] {
            assert_eq!(start_time_of(broken), None);
        }
        assert!(start_time(std::process::id() as i32).expect("our own") > 0);
    }
}
