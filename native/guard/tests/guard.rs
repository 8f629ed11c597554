//! The guard as a program, with `sleep`, `sh` and a real QEMU below it. Needs root, as in use.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const UID: u32 = 61_234;
const GID: u32 = 61_235;
const INCARNATION: &str = "00112233445566778899aabbccddeeff";
const PATIENCE: Duration = Duration::from_secs(10);

/// Directory of one VM; what still runs in it ends with it.
struct Vm {
    directory: PathBuf,
}

impl Vm {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("novacron-guard-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        Self { directory }
    }

    fn start(&self, options: &[&str], command: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_novacron-guard"))
            .arg("--dir")
            .arg(&self.directory)
            .args(["--uid", &UID.to_string(), "--gid", &GID.to_string()])
            .args(["--incarnation", INCARNATION])
            .args(options)
            .arg("--")
            .args(command)
            .output()
            .expect("the guard")
    }

    fn started(&self, options: &[&str], command: &[&str]) -> Value {
        let output = self.start(options, command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.record("guard.json").expect("guard.json is there when the starter returns")
    }

    fn record(&self, name: &str) -> Option<Value> {
        let text = fs::read_to_string(self.directory.join(name)).ok()?;
        Some(serde_json::from_str(&text).expect("a whole record"))
    }

    fn exit(&self) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(record) = self.record("exit.json") {
                return record;
            }
            assert!(Instant::now() < until, "no exit.json");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn connect(&self) -> Talk {
        let stream = UnixStream::connect(self.directory.join("guard.sock")).expect("the socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Talk(BufReader::new(stream))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(guard) = self.record("guard.json")
            && self.record("exit.json").is_none()
        {
            let pid = guard["vmmPid"].as_i64().expect("a pid") as i32;
            // SAFETY: the VMM of this test; its guard has not reaped it, so the pid is still its.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            self.exit();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Talk(BufReader<UnixStream>);

impl Talk {
    /// Sends a command in the version that the guard speaks.
    fn ask(&mut self, command: &str) -> Value {
        let line = command.replacen('{', r#"{"version":1,"#, 1);
        writeln!(self.0.get_mut(), "{line}").expect("sent");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("answered");
        serde_json::from_str(&answer).expect("JSON")
    }
}

fn boottime_ms() -> u64 {
    novacron_guard::clock::boottime_ms()
}

fn is_root() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: needs root to change users");
    }
    root
}

/// Letter of the process's state in /proc/PID/stat.
fn state_of(pid: &Value) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("alive");
    let (_, rest) = stat.rsplit_once(") ").expect("a name");
    rest.chars().next().expect("a state")
}

fn await_state(pid: &Value, states: &str, at_most: Duration) {
    let until = Instant::now() + at_most;
    while !states.contains(state_of(pid)) {
        assert!(Instant::now() < until, "{pid} is {}, not {states}", state_of(pid));
        thread::sleep(Duration::from_millis(1));
    }
}

/// Descriptors of a process as (number, what it is), in order.
fn descriptors(pid: &Value) -> Vec<(i32, String)> {
    let mut fds: Vec<(i32, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("descriptors")
        .filter_map(|entry| {
            let path = entry.expect("an entry").path();
            let number = path.file_name().and_then(|name| name.to_str()).expect("a number");
            // One that was closed meanwhile is none.
            let target = fs::read_link(&path).ok()?.display().to_string();
            Some((number.parse().expect("a number"), target))
        })
        .collect();
    fds.sort();
    fds
}

#[test]
fn the_vmm_has_no_rights_and_a_session_of_its_own() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&[], &["sleep", "60"]);
    assert_eq!(guard["incarnation"], INCARNATION);
    let pid = &guard["vmmPid"];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.expect(name).split_once(':').expect("a colon").1.trim().to_owned()
    };
    assert_eq!(field("Uid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(field("Gid"), format!("{GID}\t{GID}\t{GID}\t{GID}"));
    assert_eq!(field("Groups"), "");
    assert_eq!(field("NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    assert_eq!(field("PPid"), guard["guardPid"].to_string());
    // Its loader may still have a library open.
    let began = Instant::now();
    let mut fds = descriptors(pid);
    while fds.iter().any(|(_, path)| path.contains(".so")) && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
        fds = descriptors(pid);
    }
    let log = vm.directory.join("vmm.log").display().to_string();
    let device = guard["userfaultfdDeviceFd"].as_i64().expect("a number") as i32;
    let expected = [
        (0, "/dev/null".to_owned()),
        (1, log.clone()),
        (2, log),
        (device, "/dev/userfaultfd".to_owned()),
    ];
    assert_eq!(fds, expected);
    let session = |pid: &Value| {
        // SAFETY: plain number.
        unsafe { libc::getsid(pid.as_i64().expect("a pid") as i32) }
    };
    assert_eq!(i64::from(session(pid)), pid.as_i64().expect("a pid"));
    assert_eq!(i64::from(session(&guard["guardPid"])), guard["guardPid"].as_i64().expect("a pid"));
}

#[test]
fn a_named_group_is_the_only_one_besides_its_own() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    // Stands for the group of /dev/kvm: a device that only this group may open.
    let device = vm.directory.join("device");
    fs::write(&device, "open").expect("written");
    let group = GID + 7;
    std::os::unix::fs::chown(&device, Some(0), Some(group)).expect("given away");
    fs::set_permissions(&device, fs::Permissions::from_mode(0o660)).expect("closed to others");
    let path = device.display().to_string();
    let read = format!("cat {path} && grep ^Groups: /proc/self/status");
    vm.started(&["--group", &group.to_string()], &["sh", "-c", &read]);
    assert_eq!(vm.exit()["code"], 0);
    let log = fs::read_to_string(vm.directory.join("vmm.log")).expect("a log");
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["openGroups:", &group.to_string()]);

    let without = Vm::new();
    without.started(&[], &["sh", "-c", &format!("cat {path}")]);
    assert_ne!(without.exit()["code"], 0);
}

#[test]
fn records_tell_how_it_ended() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let exit = vm.exit();
    assert_eq!((&exit["code"], &exit["signal"]), (&Value::from(7), &Value::Null));
    assert_eq!(exit["vmmPid"], guard["vmmPid"]);
    assert_eq!(fs::read_to_string(vm.directory.join("vmm.log")).expect("a log"), "out\nerr\n");

    let vm = Vm::new();
    vm.started(&[], &["sleep", "60"]);
    assert_eq!(vm.connect().ask(r#"{"stop-vmm":{"signal":"kill"}}"#)["ok"], true);
    let exit = vm.exit();
    assert_eq!((&exit["code"], &exit["signal"]), (&Value::Null, &Value::from(libc::SIGKILL)));
    assert!(!vm.directory.join("guard.sock").exists());
}

#[test]
fn what_can_not_start_is_said() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let output = vm.start(&[], &["/no/such/program"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("starting the program") && text.contains("No such file"), "{text}");
    assert_eq!(vm.exit()["code"], 127);

    let output = vm.start(&["--keep-fd", "999"], &["sleep", "60"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("999"));
    let output = vm.start(&["--nonsense", "1"], &["sleep", "60"]);
    assert_eq!(output.status.code(), Some(2));
    let gone = Vm { directory: PathBuf::from("/no/such/directory") };
    assert_eq!(gone.start(&[], &["sleep", "60"]).status.code(), Some(1));
}

#[test]
fn start_times_are_those_of_proc() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&["--no-userfaultfd"], &["sleep", "60"]);
    assert_eq!(guard["userfaultfdDeviceFd"], Value::Null);
    for (pid, start) in [("guardPid", "guardStartTime"), ("vmmPid", "vmmStartTime")] {
        let stat = fs::read_to_string(format!("/proc/{}/stat", guard[pid])).expect("alive");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        assert_eq!(rest.split(' ').nth(19), Some(guard[start].to_string().as_str()));
    }
}

#[test]
fn kept_descriptors_reach_the_vmm_and_close_with_it() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fd = writer.as_raw_fd();
    // SAFETY: our own descriptor; it is to survive the exec of the guard.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    let script = format!("echo hello >&{fd}; sleep 0.2");
    vm.started(&["--keep-fd", &fd.to_string()], &["sh", "-c", &script]);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("an end, because the guard does not keep it");
    assert_eq!(text, "hello\n");
    vm.exit();
}

#[test]
fn the_lease_stops_it_and_only_a_fresh_resume_lets_it_go_on() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let end = boottime_ms() + 700;
    let options = ["--failover", "automatic", "--lease-ends-at-ms", &end.to_string()];
    let guard = vm.started(&options, &["sleep", "60"]);
    let pid = &guard["vmmPid"];
    let mut talk = vm.connect();
    assert_eq!(talk.ask(r#"{"status":{}}"#)["leasePaused"], false);
    // Renewed once, counted from when it was sent.
    let sent = boottime_ms() - 200;
    let renew = format!(r#"{{"renew":{{"ttlMs":1200,"sentAtBoottimeMs":{sent}}}}}"#);
    assert_eq!(talk.ask(&renew)["leaseEndsAtBoottimeMs"], sent + 1200);
    while boottime_ms() < sent + 1150 {
        assert_ne!(state_of(pid), 'T', "stopped too early");
        thread::sleep(Duration::from_millis(5));
    }
    await_state(pid, "T", Duration::from_millis(500));
    let status = talk.ask(r#"{"status":{}}"#);
    assert_eq!(status["leasePaused"], true);
    let paused_at = status["leasePausedAtBoottimeMs"].as_u64().expect("a time");
    assert!((sent + 1200..sent + 1500).contains(&paused_at), "{}", paused_at - sent);

    let now = boottime_ms();
    let renew = format!(r#"{{"renew":{{"ttlMs":12000,"sentAtBoottimeMs":{now}}}}}"#);
    assert_eq!(talk.ask(&renew)["ok"], false);
    let early = paused_at - 1;
    let stale = format!(r#"{{"resume":{{"ttlMs":12000,"sentAtBoottimeMs":{early}}}}}"#);
    assert_eq!(talk.ask(&stale)["ok"], false);
    assert_eq!(talk.ask(r#"{"stop-vmm":{}}"#)["ok"], false);
    assert_eq!(state_of(pid), 'T');
    let fresh = format!(r#"{{"resume":{{"ttlMs":400,"sentAtBoottimeMs":{now}}}}}"#);
    assert_eq!(talk.ask(&fresh)["leasePaused"], false);
    await_state(pid, "SR", Duration::from_millis(500));
    drop(talk);
    // Nobody is connected any more, as after the runner's death: it ends all the same.
    await_state(pid, "T", Duration::from_secs(2));
    vm.connect().ask(r#"{"stop-vmm":{"signal":"kill"}}"#);
    assert_eq!(vm.exit()["leasePaused"], true);
}

#[test]
fn without_automatic_failover_a_lease_binds_nothing() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&["--lease-ends-at-ms", "1"], &["sleep", "60"]);
    let now = boottime_ms();
    let renew = format!(r#"{{"renew":{{"ttlMs":1,"sentAtBoottimeMs":{now}}}}}"#);
    vm.connect().ask(&renew);
    thread::sleep(Duration::from_millis(200));
    assert_ne!(state_of(&guard["vmmPid"]), 'T');
}

#[test]
fn a_dead_guard_takes_a_lease_bound_vmm_with_it() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&["--failover", "automatic"], &["sleep", "60"]);
    let pid = guard["guardPid"].as_i64().expect("a pid") as i32;
    // SAFETY: the guard of this test, which lives.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    thread::sleep(Duration::from_millis(50));
    let status = vm.connect().ask(r#"{"status":{}}"#);
    assert_eq!((&status["ok"], &status["version"]), (&json!(true), &json!(1)), "SIGTERM ends none");
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let until = Instant::now() + PATIENCE;
    let stat = format!("/proc/{}/stat", guard["vmmPid"]);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < until, "the VMM outlived its guard");
        thread::sleep(Duration::from_millis(5));
    }
    fs::write(vm.directory.join("exit.json"), "{}").expect("nobody else writes it now");
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    if !is_root() {
        return;
    }
    let vm = Vm::new();
    let guard = vm.started(&[], &["sleep", "60"]);
    let mut crowd = Vec::new();
    for number in 0..40_u8 {
        let mut talk = vm.connect();
        let garbage: Vec<u8> =
            (0..6000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ number).collect();
        // It may be cut off in the middle, or never read an answer.
        let _ = talk.0.get_mut().write_all(&garbage);
        crowd.push(talk);
    }
    let answer = vm.connect().ask("nonsense");
    assert_eq!(answer["ok"], false);
    assert!(answer["error"].as_str().expect("a text").contains("not a command"));
    assert_eq!(vm.connect().ask(r#"{"status":{}}"#)["vmmPid"], guard["vmmPid"]);
}

#[test]
fn a_real_vmm_runs_below_it() {
    if !is_root() {
        return;
    }
    let qemu = "/usr/bin/qemu-system-x86_64";
    if !std::path::Path::new(qemu).exists() {
        println!("skipped: {qemu} is missing");
        return;
    }
    let vm = Vm::new();
    let arguments = [
        qemu,
        "-S",
        "-accel",
        "tcg",
        "-m",
        "64",
        "-nodefaults",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ];
    let guard = vm.started(&["--failover", "automatic"], &arguments);
    thread::sleep(Duration::from_millis(300));
    assert!(vm.record("exit.json").is_none(), "{:?}", vm.record("exit.json"));
    let sent = boottime_ms();
    let renew = format!(r#"{{"renew":{{"ttlMs":150,"sentAtBoottimeMs":{sent}}}}}"#);
    assert_eq!(vm.connect().ask(&renew)["ok"], true);
    await_state(&guard["vmmPid"], "T", Duration::from_secs(2));
    // Every thread of it stands, vCPUs included.
    for task in fs::read_dir(format!("/proc/{}/task", guard["vmmPid"])).expect("threads") {
        let path = task.expect("a thread").path().join("stat");
        let stat = fs::read_to_string(path).expect("alive");
        assert!(stat.contains(") T "), "{stat}");
    }
    let now = boottime_ms();
    let resume = format!(r#"{{"resume":{{"ttlMs":20000,"sentAtBoottimeMs":{now}}}}}"#);
    assert_eq!(vm.connect().ask(&resume)["ok"], true);
    assert_eq!(vm.connect().ask(r#"{"stop-vmm":{}}"#)["ok"], true);
    let exit = vm.exit();
    assert_eq!(exit["code"], 0, "QEMU ends properly on SIGTERM: {exit}");
}
