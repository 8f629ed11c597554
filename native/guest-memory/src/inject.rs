//! Runs one system call inside another process, by `ptrace`, and leaves no trace of it.
//!
//! One thread is seized and interrupted; its registers are saved, a `syscall` instruction that the
//! process has anyway (vdso, libc) is executed with our arguments, and the registers are put back
//! at a stop inside signal handling, where the kernel restarts a system call that was interrupted.
//! Signals that arrive meanwhile stay pending behind a full signal mask; a stop signal, which no
//! mask holds, is sent again afterwards. Everything happens in one thread of ours that ends with
//! it: if that thread failed midway, the kernel would detach by itself. Stops are seen by asking
//! for their cause, never by waitpid(2): where the VMM is a child of this process, whoever reaps
//! its children would take the reports away.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::MemoryError;

const GET_SIGNAL_MASK: u32 = 0x420A;
const SET_SIGNAL_MASK: u32 = 0x420B;
const EVENT_STOP: i32 = 128;
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
/// A thread in an uninterruptible sleep does not stop; a VMM's main loop never sleeps so long.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);
/// `syscall` of x86-64.
const INSTRUCTION: [u8; 2] = [0x0F, 0x05];
/// Bytes of program text looked through for the instruction.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// A system call of up to three arguments.
#[derive(Clone, Copy, Debug)]
pub struct SyscallCall {
    pub number: i64,
    pub arguments: [i64; 3],
}

/// Runs the call in the main thread of the process; answers what the kernel returned (a negative
/// error number for a refusal).
pub fn run_in_process(pid: i32, call: &SyscallCall) -> Result<i64, MemoryError> {
    let call = *call;
    let worker = std::thread::Builder::new()
        .name("inject".into())
        .spawn(move || {
            let instruction = find_instruction(pid)?;
            Tracee::seize(pid)?.run(instruction, &call)
        })
        .map_err(MemoryError::system("starting the injecting thread"))?;
    worker
        .join()
        .unwrap_or_else(|_| Err(MemoryError::Injection("the injecting thread panicked".into())))
}

/// Address of a `syscall` instruction in the process's text.
fn find_instruction(pid: i32) -> Result<u64, MemoryError> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(MemoryError::system("reading the maps of the VMM"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .map_err(MemoryError::system("opening the memory of the VMM"))?;
    for name in ["[vdso]", "libc", "ld-linux"] {
        for line in maps.lines().filter(|line| line.contains(name)) {
            let Some((start, end)) = executable_span(line) else { continue };
            let mut text = vec![0; (end - start).min(TEXT_BYTES_MAX) as usize];
            if memory.read_exact_at(&mut text, start).is_err() {
                continue;
            }
            let found = text.windows(INSTRUCTION.len()).position(|bytes| bytes == INSTRUCTION);
            if let Some(offset) = found {
                return Ok(start + offset as u64);
            }
        }
    }
    Err(MemoryError::Injection("no syscall instruction in the text of the VMM".into()))
}

fn executable_span(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Why a seized thread stands.
enum Stop {
    /// At the beginning or the end of a system call.
    Syscall,
    /// Because of our interrupt, or together with its whole group.
    Event,
    /// A signal is about to be delivered.
    Signal(i32),
}

/// One seized thread.
struct Tracee {
    thread: i32,
    held_stop_signals: Vec<i32>,
}

impl Tracee {
    fn seize(thread: i32) -> Result<Self, MemoryError> {
        let tracee = Self { thread, held_stop_signals: Vec::new() };
        tracee.request(libc::PTRACE_SEIZE, 0, libc::PTRACE_O_TRACESYSGOOD as usize, "seizing")?;
        Ok(tracee)
    }

    fn run(mut self, instruction: u64, call: &SyscallCall) -> Result<i64, MemoryError> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0, "interrupting")?;
        self.reach_event_stop()?;
        let saved = self.registers()?;
        let mask = self.signal_mask()?;
        self.set_signal_mask(u64::MAX)?;
        let mut changed = saved;
        changed.rip = instruction;
        changed.rax = call.number as u64;
        changed.rdi = call.arguments[0] as u64;
        changed.rsi = call.arguments[1] as u64;
        changed.rdx = call.arguments[2] as u64;
        (changed.r10, changed.r8, changed.r9) = (0, 0, 0);
        // Not inside a system call: the kernel must not restart the one that was interrupted.
        changed.orig_rax = u64::MAX;
        self.set_registers(&changed)?;
        let result = self.step_over_syscall();
        self.set_registers(&saved)?;
        // It stands at the end of a system call: from here the kernel would not restart the one
        // that was interrupted, from the next stop it does. No instruction runs in between.
        self.request(libc::PTRACE_INTERRUPT, 0, 0, "interrupting")?;
        self.request(libc::PTRACE_CONT, 0, 0, "going on")?;
        self.reach_event_stop()?;
        self.set_registers(&saved)?;
        self.set_signal_mask(mask)?;
        self.request(libc::PTRACE_DETACH, 0, 0, "detaching")?;
        for signal in &self.held_stop_signals {
            // SAFETY: tgkill takes no pointers.
            unsafe { libc::syscall(libc::SYS_tgkill, self.thread, self.thread, *signal) };
        }
        result
    }

    /// Waits for the stop inside the kernel's signal handling, handing on signals that come first.
    fn reach_event_stop(&mut self) -> Result<(), MemoryError> {
        loop {
            match self.wait()? {
                Stop::Event => return Ok(()),
                Stop::Syscall => self.request(libc::PTRACE_CONT, 0, 0, "going on")?,
                Stop::Signal(signal) => {
                    self.request(libc::PTRACE_CONT, 0, signal as usize, "handing on a signal")?;
                }
            }
        }
    }

    fn step_over_syscall(&mut self) -> Result<i64, MemoryError> {
        let mut stops = 0;
        while stops < 2 {
            self.request(libc::PTRACE_SYSCALL, 0, 0, "running the system call")?;
            match self.wait()? {
                Stop::Syscall => stops += 1,
                Stop::Signal(signal) => self.held_stop_signals.push(signal),
                Stop::Event => {}
            }
        }
        Ok(self.registers()?.rax as i64)
    }

    /// Waits for the next stop. A thread that was told to go on is not stopped when that request
    /// returns, so a stop that is seen is a new one.
    fn wait(&self) -> Result<Stop, MemoryError> {
        let began = Instant::now();
        loop {
            // SAFETY: all-zero is a valid value of this struct.
            let mut cause: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let at = (&raw mut cause) as usize;
            if self.request(libc::PTRACE_GETSIGINFO, 0, at, "asking for the stop").is_ok() {
                return Ok(match cause.si_code {
                    SYSCALL_STOP => Stop::Syscall,
                    code if code >> 8 == EVENT_STOP => Stop::Event,
                    _ => Stop::Signal(cause.si_signo),
                });
            }
            if !std::path::Path::new(&format!("/proc/{}", self.thread)).exists() {
                return Err(MemoryError::Injection("the VMM process ended".into()));
            }
            if began.elapsed() > STOP_WAIT_MAX {
                return Err(MemoryError::Injection("the VMM did not stop in time".into()));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn registers(&self) -> Result<libc::user_regs_struct, MemoryError> {
        // SAFETY: all-zero is a valid value of this struct of integers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let at = (&raw mut registers) as usize;
        self.request(libc::PTRACE_GETREGS, 0, at, "reading registers")?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> Result<(), MemoryError> {
        self.request(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers) as usize, "registers")
    }

    fn signal_mask(&self) -> Result<u64, MemoryError> {
        let mut mask = 0_u64;
        let at = (&raw mut mask) as usize;
        self.request(GET_SIGNAL_MASK, size_of::<u64>(), at, "reading the signal mask")?;
        Ok(mask)
    }

    fn set_signal_mask(&self, mask: u64) -> Result<(), MemoryError> {
        let at = (&raw const mask) as usize;
        self.request(SET_SIGNAL_MASK, size_of::<u64>(), at, "setting the signal mask")
    }

    fn request(
        &self,
        request: u32,
        address: usize,
        data: usize,
        what: &str,
    ) -> Result<(), MemoryError> {
        // SAFETY: the thread is ours to trace; `data` points to a live object of the size that the
        // request works on, wherever the request takes a pointer.
        let done = unsafe { libc::ptrace(request, self.thread, address, data) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(MemoryError::Injection(format!("{what} of the VMM: {error}")))
    }
}
