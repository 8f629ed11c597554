//! Starting the VMM: what it inherits and which rights it loses before its first instruction.

use std::ffi::{CString, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Highest capability number that is tried; the kernel refuses the ones it does not know.
const CAPABILITY_MAX: libc::c_int = 63;
/// Where the VMM finds /dev/userfaultfd: the last number below the usual limit of descriptors.
const USERFAULTFD_FD: RawFd = 1023;
const EXEC_FAILED: libc::c_int = 127;

/// What the VMM is started with.
pub struct Plan {
    argv: Vec<CString>,
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
    log: OwnedFd,
    nothing: OwnedFd,
    userfaultfd: Option<OwnedFd>,
    kept_fds: Vec<RawFd>,
    /// The VMM dies with its guard: without one a lease would bind nothing.
    dies_with_guard: bool,
}

/// A VMM that waits for permission to start.
pub struct Held {
    pub pid: libc::pid_t,
    gate: std::fs::File,
    failure: std::fs::File,
}

impl Plan {
    pub fn new(
        command: &[OsString],
        ids: (u32, u32, &[u32]),
        log: &Path,
        opens_userfaultfd: bool,
        kept_fds: &[RawFd],
        dies_with_guard: bool,
    ) -> Result<Self, String> {
        let argv = command
            .iter()
            .map(|argument| CString::new(argument.clone().into_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "an argument holds a zero byte".to_owned())?;
        for &fd in kept_fds {
            // SAFETY: F_GETFD takes no pointer and changes nothing.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
                return Err(format!("--keep-fd {fd}: no such descriptor"));
            }
        }
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .map_err(|e| format!("{}: {e}", log.display()))?;
        let nothing = OpenOptions::new().read(true).open("/dev/null").map_err(|e| e.to_string())?;
        let userfaultfd = if opens_userfaultfd {
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/userfaultfd")
                .map_err(|e| format!("/dev/userfaultfd: {e}"))?;
            Some(device.into())
        } else {
            None
        };
        Ok(Self {
            argv,
            uid: ids.0,
            gid: ids.1,
            groups: ids.2.to_vec(),
            log: log.into(),
            nothing: nothing.into(),
            userfaultfd,
            kept_fds: kept_fds.to_vec(),
            dies_with_guard,
        })
    }

    /// Number of /dev/userfaultfd inside the VMM.
    pub fn userfaultfd_fd(&self) -> Option<RawFd> {
        self.userfaultfd.as_ref().map(|_| USERFAULTFD_FD)
    }

    /// Forks; the child waits. Nothing else may run in this process: it has one thread.
    pub fn fork(&self) -> io::Result<Held> {
        let (permission, gate) = pipe()?;
        let (failure, complaint) = pipe()?;
        let mut argv: Vec<*const libc::c_char> =
            self.argv.iter().map(|argument| argument.as_ptr()).collect();
        argv.push(std::ptr::null());
        // SAFETY: this process has one thread, so the child may use the allocator; it only makes
        // system calls until exec all the same.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // The other end: the guard's death while we wait must be seen as end of file.
                drop((gate, failure));
                self.become_vmm(&permission, &complaint, &argv)
            }
            pid => Ok(Held { pid, gate: gate.into(), failure: failure.into() }),
        }
    }

    fn become_vmm(
        &self,
        permission: &OwnedFd,
        complaint: &OwnedFd,
        argv: &[*const libc::c_char],
    ) -> ! {
        let step = self.confine_and_exec(permission, argv);
        let code = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let report = [step.as_bytes(), b"\0", &code.to_le_bytes()].concat();
        // SAFETY: writes a valid buffer, then leaves without running anybody's exit handlers.
        unsafe {
            libc::write(complaint.as_raw_fd(), report.as_ptr().cast(), report.len());
            libc::_exit(EXEC_FAILED)
        }
    }

    /// Only returns when a step failed: its name; errno says why.
    fn confine_and_exec(&self, permission: &OwnedFd, argv: &[*const libc::c_char]) -> &'static str {
        let mut byte = 0_u8;
        // SAFETY: system calls on descriptors of ours and valid pointers; each result is looked at
        // where a failure would leave the VMM with more rights than it may have.
        unsafe {
            if self.dies_with_guard {
                // Again below: a change of ids clears it. Here it covers the wait.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            if libc::read(permission.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
                return "waiting for the guard";
            }
            libc::setsid();
            for (from, to) in [(&self.nothing, 0), (&self.log, 1), (&self.log, 2)] {
                if libc::dup2(from.as_raw_fd(), to) < 0 {
                    return "redirecting input and output";
                }
            }
            if let Some(device) = &self.userfaultfd
                && libc::dup2(device.as_raw_fd(), USERFAULTFD_FD) < 0
            {
                return "handing over /dev/userfaultfd";
            }
            if libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as _) < 0 {
                return "closing descriptors";
            }
            let device = self.userfaultfd_fd();
            for &fd in self.kept_fds.iter().chain(&device) {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return "keeping a descriptor";
                }
            }
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::umask(0o077);
            // Guests share the host's ordinary priority, whatever the runner has given itself.
            if libc::setpriority(libc::PRIO_PROCESS, 0, 0) < 0 {
                return "taking the ordinary priority";
            }
            if let Some(step) = self.drop_rights() {
                return step;
            }
            libc::execvp(argv[0], argv.as_ptr());
        }
        "starting the program"
    }

    /// In this order: what needs rights first, the rights last.
    fn drop_rights(&self) -> Option<&'static str> {
        // SAFETY: system calls on plain numbers; every failure is reported.
        unsafe {
            let privileged = libc::geteuid() == 0;
            if privileged {
                for capability in 0..=CAPABILITY_MAX {
                    let dropped = libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                    if dropped < 0 && *libc::__errno_location() != libc::EINVAL {
                        return Some("dropping capabilities");
                    }
                }
                // None of ours stays; what is named is named for one device.
                if libc::setgroups(self.groups.len(), self.groups.as_ptr()) < 0 {
                    return Some("changing the groups");
                }
            }
            if libc::setresgid(self.gid, self.gid, self.gid) < 0 {
                return Some("changing the group");
            }
            if libc::setresuid(self.uid, self.uid, self.uid) < 0 {
                return Some("changing the user");
            }
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
                return Some("refusing new privileges");
            }
            if self.dies_with_guard && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Some("binding it to the guard");
            }
        }
        None
    }
}

impl Held {
    /// Lets it start; returns when the program runs or could not be started.
    pub fn release(mut self) -> Result<(), String> {
        self.gate.write_all(&[1]).map_err(|e| format!("the VMM ended before its start: {e}"))?;
        let mut report = Vec::new();
        self.failure.read_to_end(&mut report).map_err(|e| e.to_string())?;
        if report.is_empty() {
            return Ok(());
        }
        let mut parts = report.splitn(2, |&byte| byte == 0);
        let step = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let code = parts.next().and_then(|code| code.try_into().ok()).map_or(0, i32::from_le_bytes);
        Err(format!("{step}: {}", io::Error::from_raw_os_error(code)))
    }
}

/// Reading end, writing end; both closed on exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us both, nobody else owns them.
    unsafe { Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))) }
}
