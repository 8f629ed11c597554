//! The command line: parsed once, with errors that name the argument and the rule.

use crate::lease::Failover;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

pub const HELP: &str = "\
usage: novacron-guard --dir DIR --uid N --gid N [options] -- PROGRAM [ARGUMENT...]

Runs PROGRAM (a VMM) as uid:gid without any rights, outlives the process that started it, and
returns 0 once PROGRAM runs. DIR receives guard.json, vmm.log, and exit.json at the end.

  --dir DIR                  absolute directory of the VM
  --uid N, --gid N           who the VMM runs as; not 0
  --incarnation HEX32        identity of this VMM process, 32 hex digits
  --lease-socket PATH        where commands are taken (default DIR/guard.sock)
  --failover none|automatic  automatic binds the VMM to its lease (default none)
  --lease-ends-at-ms N       CLOCK_BOOTTIME ms at which the first lease ends; without it the lease
                             binds from the first renewal on
  --group N                  group that the VMM has besides --gid, e.g. that of /dev/kvm; not 0;
                             repeatable, none by default
  --keep-fd N                descriptor that the VMM inherits under its number; repeatable
  --cgroup DIR               cgroup (v2) that guard and VMM join
  --no-userfaultfd           don't open /dev/userfaultfd for the VMM

Commands on the socket, one JSON object a line, each answered by one line:
  {\"version\":1,\"status\":{}}
  {\"version\":1,\"renew\":{\"ttlMs\":N,\"sentAtBoottimeMs\":N}}
  {\"version\":1,\"resume\":{\"ttlMs\":N,\"sentAtBoottimeMs\":N}}
                             after a pause by the lease, with proof of ownership
  {\"version\":1,\"stop-vmm\":{\"signal\":\"term\"|\"kill\"}}";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Help,
    Run(Arguments),
}

/// Arguments of one guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    pub directory: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub incarnation: String,
    pub socket: PathBuf,
    pub failover: Failover,
    pub lease_ends_at_ms: Option<u64>,
    pub kept_fds: Vec<RawFd>,
    pub cgroup: Option<PathBuf>,
    pub opens_userfaultfd: bool,
    pub command: Vec<OsString>,
}

/// Lowest descriptor that may be kept; below are stdin, stdout, stderr.
const KEPT_FD_MIN: RawFd = 3;
/// Highest descriptor that may be kept: a runner never has more for one VM.
const KEPT_FD_MAX: RawFd = 1022;

/// A VMM needs one for its accelerator; more would be somebody's mistake.
const GROUPS_MAX: usize = 4;

#[derive(Default)]
struct Draft {
    directory: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
    incarnation: Option<String>,
    socket: Option<PathBuf>,
    failover: Option<Failover>,
    lease_ends_at_ms: Option<u64>,
    kept_fds: Vec<RawFd>,
    cgroup: Option<PathBuf>,
    skips_userfaultfd: bool,
}

impl Arguments {
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
        let mut arguments = arguments;
        let mut draft = Draft::default();
        let mut command = Vec::new();
        while let Some(argument) = arguments.next() {
            let name = argument.to_str().ok_or("an option that is not UTF-8")?.to_owned();
            match name.as_str() {
                "--help" | "-h" => return Ok(Parsed::Help),
                "--no-userfaultfd" => draft.skips_userfaultfd = true,
                "--" => {
                    command = arguments.collect();
                    break;
                }
                _ => {
                    let value = arguments.next();
                    draft.take(&name, value)?;
                }
            }
        }
        draft.finish(command).map(Parsed::Run)
    }
}

impl Draft {
    fn take(&mut self, name: &str, value: Option<OsString>) -> Result<(), String> {
        let known = [
            "--dir",
            "--uid",
            "--gid",
            "--group",
            "--incarnation",
            "--lease-socket",
            "--failover",
            "--lease-ends-at-ms",
            "--keep-fd",
            "--cgroup",
        ];
        if !known.contains(&name) {
            return Err(format!("unknown option {name:?}"));
        }
        let value = value.ok_or_else(|| format!("{name} wants a value"))?;
        let text = value.to_str().ok_or_else(|| format!("{name} wants UTF-8"))?;
        match name {
            "--dir" => self.directory = Some(absolute(name, text)?),
            "--uid" => self.uid = Some(unprivileged_id(name, text)?),
            "--gid" => self.gid = Some(unprivileged_id(name, text)?),
            "--group" => {
                if self.groups.len() >= GROUPS_MAX {
                    return Err(format!("--group: at most {GROUPS_MAX}"));
                }
                self.groups.push(unprivileged_id(name, text)?);
            }
            "--incarnation" => self.incarnation = Some(incarnation(text)?),
            "--lease-socket" => self.socket = Some(absolute(name, text)?),
            "--failover" => {
                self.failover = Some(match text {
                    "none" => Failover::None,
                    "automatic" => Failover::Automatic,
                    _ => return Err(format!("--failover is none or automatic, not {text:?}")),
                });
            }
            "--lease-ends-at-ms" => self.lease_ends_at_ms = Some(number(name, text)?),
            "--keep-fd" => {
                let fd = number::<RawFd>(name, text)?;
                if !(KEPT_FD_MIN..=KEPT_FD_MAX).contains(&fd) {
                    return Err(format!("--keep-fd is {KEPT_FD_MIN} to {KEPT_FD_MAX}, not {fd}"));
                }
                self.kept_fds.push(fd);
            }
            _ => self.cgroup = Some(absolute(name, text)?),
        }
        Ok(())
    }

    fn finish(self, command: Vec<OsString>) -> Result<Arguments, String> {
        let directory = self.directory.ok_or("--dir is missing")?;
        if command.is_empty() {
            return Err("no program after --".to_owned());
        }
        Ok(Arguments {
            uid: self.uid.ok_or("--uid is missing")?,
            gid: self.gid.ok_or("--gid is missing")?,
            groups: self.groups,
            incarnation: self.incarnation.unwrap_or_default(),
            socket: self.socket.unwrap_or_else(|| directory.join("guard.sock")),
            failover: self.failover.unwrap_or(Failover::None),
            lease_ends_at_ms: self.lease_ends_at_ms,
            kept_fds: self.kept_fds,
            cgroup: self.cgroup,
            opens_userfaultfd: !self.skips_userfaultfd,
            directory,
            command,
        })
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} wants a number, not {text:?}"))
}

fn unprivileged_id(name: &str, text: &str) -> Result<u32, String> {
    match number(name, text)? {
        0 => Err(format!("{name} is 0: a VMM never runs as root")),
        u32::MAX => Err(format!("{name} is no valid id")),
        id => Ok(id),
    }
}

fn absolute(name: &str, text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("{name} wants an absolute path, not {text:?}"))
    }
}

fn incarnation(text: &str) -> Result<String, String> {
    let fits =
        text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fits { Ok(text.to_owned()) } else { Err("--incarnation wants 32 hex digits".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Parsed, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_full_line_is_understood() {
        let line = "--dir /vm --uid 70001 --gid 70002 --incarnation \
            00112233445566778899aabbccddeeff --group 108 --failover automatic --lease-ends-at-ms 99 \
            --keep-fd 3 --keep-fd 7 -- qemu --dir x";
        let Ok(Parsed::Run(arguments)) = parse(line) else { panic!("refused") };
        assert_eq!((arguments.uid, arguments.gid), (70001, 70002));
        assert_eq!(arguments.groups, [108]);
        assert_eq!(arguments.socket, PathBuf::from("/vm/guard.sock"));
        assert_eq!(arguments.failover, Failover::Automatic);
        assert_eq!(arguments.lease_ends_at_ms, Some(99));
        assert_eq!(arguments.kept_fds, [3, 7]);
        assert_eq!(arguments.command, ["qemu", "--dir", "x"]);
        assert!(arguments.opens_userfaultfd);
    }

    #[test]
    fn each_mistake_is_named() {
        for (line, word) in [
            ("--uid 1 --gid 1 -- q", "--dir"),
            ("--dir /a --gid 1 -- q", "--uid"),
            ("--dir /a --uid 1 -- q", "--gid"),
            ("--dir /a --uid 1 --gid 1", "program"),
            ("--dir /a --uid 1 --gid 1 --", "program"),
            ("--dir a --uid 1 --gid 1 -- q", "absolute"),
            ("--dir /a --uid 0 --gid 1 -- q", "root"),
            ("--dir /a --uid -1 --gid 1 -- q", "number"),
            ("--dir /a --uid 4294967295 --gid 1 -- q", "valid"),
            ("--dir /a --uid 1 --gid 1 --group 0 -- q", "root"),
            ("--dir /a --uid 1 --gid 1 --group kvm -- q", "number"),
            ("--dir /a --uid 1 --gid 1 --group 1 --group 2 --group 3 --group 4 --group 5", "most"),
            ("--dir /a --uid 1 --gid 1 --keep-fd 2 -- q", "--keep-fd"),
            ("--dir /a --uid 1 --gid 1 --failover maybe -- q", "maybe"),
            ("--dir /a --uid 1 --gid 1 --incarnation 12 -- q", "hex"),
            ("--dir /a --uid 1 --gid 1 --what 12 -- q", "--what"),
            ("--dir", "value"),
        ] {
            let why = parse(line).expect_err(line);
            assert!(why.contains(word), "{line}: {why}");
        }
    }
}
