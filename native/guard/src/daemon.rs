//! The guard as a process: it leaves its starter, starts the VMM, then waits for three things at
//! once: the VMM's end, the lease's end, and commands.

use crate::arguments::Arguments;
use crate::clock::{boottime_ms, unix_ms};
use crate::launch::{Plan, pipe};
use crate::lease::{Action, Failover, Lease};
use crate::record::{ExitRecord, GuardRecord, boot_id, start_time, write_durably};
use crate::talk::{Answer, Command, LINE_BYTES_MAX, StopSignal, TALK_VERSION, failover_name, parse};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

/// Connections at once: the runner holds one, a person may look with another.
const CLIENTS_MAX: usize = 8;

/// Leaves the calling process and runs the guard in a new one; returns when the VMM runs.
pub fn start(arguments: &Arguments) -> Result<(), String> {
    let (report, told) = pipe().map_err(|e| e.to_string())?;
    // SAFETY: this process has one thread; the child goes on with ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().to_string()),
        0 => {
            drop(report);
            std::process::exit(run(arguments, told));
        }
        _ => {
            drop(told);
            let mut text = String::new();
            File::from(report).read_to_string(&mut text).map_err(|e| e.to_string())?;
            match text.as_str() {
                "ok" => Ok(()),
                "" => Err("the guard died while starting".to_owned()),
                why => Err(why.to_owned()),
            }
        }
    }
}

/// The guard's life; answers its exit code. `told` closes when the starter has been answered.
fn run(arguments: &Arguments, told: OwnedFd) -> i32 {
    let mut told = File::from(told);
    match Guard::start(arguments) {
        Ok(mut guard) => {
            // The starter may be gone already; the VMM runs all the same.
            let _ = told.write_all(b"ok");
            drop(told);
            guard.watch()
        }
        Err(why) => {
            let _ = told.write_all(why.as_bytes());
            1
        }
    }
}

struct Guard {
    arguments: Arguments,
    lease: Lease,
    vmm_pid: libc::pid_t,
    vmm: OwnedFd,
    timer: OwnedFd,
    listener: UnixListener,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Guard {
    fn start(arguments: &Arguments) -> Result<Self, String> {
        leave_starter(arguments)?;
        let listener = listen(arguments).map_err(|e| format!("the socket: {e}"))?;
        let timer = boottime_timer().map_err(|e| format!("the timer: {e}"))?;
        let plan = Plan::new(
            &arguments.command,
            (arguments.uid, arguments.gid, &arguments.groups),
            &arguments.directory.join("vmm.log"),
            arguments.opens_userfaultfd,
            &arguments.kept_fds,
            arguments.failover == Failover::Automatic,
        )?;
        let held = plan.fork().map_err(|e| format!("fork: {e}"))?;
        let vmm_pid = held.pid;
        let vmm = pidfd(vmm_pid).map_err(|e| format!("pidfd: {e}"))?;
        let started = introduce(arguments, &plan, vmm_pid).and_then(|()| held.release());
        let guard = Self {
            lease: Lease::new(arguments.failover, arguments.lease_ends_at_ms),
            arguments: arguments.clone(),
            vmm_pid,
            vmm,
            timer,
            listener,
            clients: Vec::new(),
        };
        if let Err(why) = started {
            guard.signal(libc::SIGKILL);
            guard.bury();
            return Err(why);
        }
        for &fd in &arguments.kept_fds {
            // SAFETY: handed over to the VMM; nothing in this process uses them.
            unsafe { libc::close(fd) };
        }
        Ok(guard)
    }

    fn watch(&mut self) -> i32 {
        loop {
            let action = self.lease.tick(boottime_ms());
            self.act(action);
            self.arm_timer();
            let mut entries = vec![
                entry(self.vmm.as_raw_fd()),
                entry(self.timer.as_raw_fd()),
                entry(self.listener.as_raw_fd()),
            ];
            entries.extend(self.clients.iter().map(|client| entry(client.stream.as_raw_fd())));
            // SAFETY: a valid array of that length, of descriptors that are open.
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
            if entries[0].revents != 0 {
                return self.bury();
            }
            if entries[1].revents != 0 {
                let mut expirations = [0; 8];
                // SAFETY: a timerfd gives eight bytes; it is non-blocking.
                unsafe { libc::read(self.timer.as_raw_fd(), expirations.as_mut_ptr().cast(), 8) };
            }
            let talkative: Vec<bool> = entries[3..].iter().map(|e| e.revents != 0).collect();
            self.hear(&talkative);
            if entries[2].revents != 0 {
                self.welcome();
            }
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Stop => self.signal(libc::SIGSTOP),
            Action::Continue => self.signal(libc::SIGCONT),
        }
    }

    /// To the VMM that this guard started and nobody else, whatever happened to its pid.
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a descriptor of ours, plain numbers, no siginfo. A VMM that is gone is noticed
        // by its descriptor.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.vmm.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }

    fn arm_timer(&self) {
        let wakes_at_ms = self.lease.wakes_at_ms().unwrap_or(0);
        let setting = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (wakes_at_ms / 1000) as libc::time_t,
                tv_nsec: (wakes_at_ms % 1000 * 1_000_000) as libc::c_long,
            },
        };
        // SAFETY: a valid setting; all zeros disarm. An end in the past fires at once.
        unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const setting,
                std::ptr::null_mut(),
            )
        };
    }

    fn welcome(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.remove(0);
        }
        self.clients.push(Client { stream, received: Vec::new() });
    }

    fn hear(&mut self, talkative: &[bool]) {
        let clients = std::mem::take(&mut self.clients);
        for (mut client, &talks) in clients.into_iter().zip(talkative) {
            if !talks || self.converse(&mut client) {
                self.clients.push(client);
            }
        }
    }

    /// Answers every whole line; false when the client is to be forgotten.
    fn converse(&mut self, client: &mut Client) -> bool {
        let mut buffer = [0; LINE_BYTES_MAX];
        match client.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => client.received.extend_from_slice(&buffer[..count]),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some(end) = client.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = client.received.drain(..=end).collect();
            let answer = self.obey(&line[..end]);
            // One that does not read its answers is no runner of ours.
            if client.stream.write_all(&answer).is_err() {
                return false;
            }
        }
        client.received.len() < LINE_BYTES_MAX
    }

    fn obey(&mut self, line: &[u8]) -> Vec<u8> {
        let now_ms = boottime_ms();
        let outcome = parse(line).and_then(|command| match command {
            Command::Status(_) => Ok(()),
            Command::Renew(order) => {
                let (action, taken) = self.lease.renew(order.into(), now_ms);
                self.act(action);
                taken.map_err(|refusal| refusal.reason().to_owned())
            }
            Command::Resume(order) => {
                let (action, taken) = self.lease.resume(order.into(), now_ms);
                self.act(action);
                taken.map_err(|refusal| refusal.reason().to_owned())
            }
            Command::StopVmm(order) => {
                match order.signal {
                    StopSignal::Kill => self.signal(libc::SIGKILL),
                    StopSignal::Term if self.lease.paused_at_ms().is_some() => {
                        return Err("paused by its lease, it can't end by itself; use kill".into());
                    }
                    StopSignal::Term => self.signal(libc::SIGTERM),
                }
                Ok(())
            }
        });
        let incarnation = &self.arguments.incarnation;
        Answer::new(outcome, incarnation, self.vmm_pid, &self.lease, now_ms).line()
    }

    /// Reaps the VMM and leaves its last record.
    fn bury(&self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child, a valid pointer.
        while unsafe { libc::waitpid(self.vmm_pid, &raw mut status, 0) } < 0 {
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
        let record = ExitRecord {
            version: TALK_VERSION,
            incarnation: self.arguments.incarnation.clone(),
            vmm_pid: self.vmm_pid,
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            lease_paused: self.lease.paused_at_ms().is_some(),
            at_ms: unix_ms(),
        };
        let written = write_durably(&self.arguments.directory.join("exit.json"), &record);
        let _ = fs::remove_file(&self.arguments.socket);
        i32::from(written.is_err())
    }
}

/// `guard.json`, durable while the VMM still waits: no VMM ever runs that nobody knows of.
fn introduce(arguments: &Arguments, plan: &Plan, vmm_pid: libc::pid_t) -> Result<(), String> {
    let guard_pid = std::process::id() as i32;
    let written = start_time(guard_pid).and_then(|guard_start_time| {
        let record = GuardRecord {
            version: TALK_VERSION,
            incarnation: arguments.incarnation.clone(),
            guard_pid,
            vmm_pid,
            guard_start_time,
            vmm_start_time: start_time(vmm_pid)?,
            boot_id: boot_id()?,
            userfaultfd_device_fd: plan.userfaultfd_fd(),
            socket: arguments.socket.display().to_string(),
            failover: failover_name(arguments.failover),
            started_at_ms: unix_ms(),
        };
        write_durably(&arguments.directory.join("guard.json"), &record)
    });
    written.map_err(|e| format!("guard.json: {e}"))
}

/// A session and a cgroup of our own, no terminal, no signals that were meant for the starter.
fn leave_starter(arguments: &Arguments) -> Result<(), String> {
    // SAFETY: plain system calls. SIGTERM too: a guard ends when its VMM has ended, never before.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    std::env::set_current_dir("/").map_err(|e| e.to_string())?;
    if let Some(cgroup) = &arguments.cgroup {
        let members = cgroup.join("cgroup.procs");
        fs::write(&members, "0").map_err(|e| format!("{}: {e}", members.display()))?;
    }
    let nothing = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| format!("/dev/null: {e}"))?;
    for fd in 0..3 {
        // SAFETY: two open descriptors; the standard ones are nobody's property.
        unsafe { libc::dup2(nothing.as_raw_fd(), fd) };
    }
    Ok(())
}

fn listen(arguments: &Arguments) -> io::Result<UnixListener> {
    match fs::remove_file(&arguments.socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // SAFETY: plain number; the mode is right from the start, not only after chmod.
    let mask = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(&arguments.socket);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let listener = listener?;
    fs::set_permissions(&arguments.socket, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as RawFd)
}

fn boottime_timer() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    owned(unsafe {
        libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
    })
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn entry(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}
