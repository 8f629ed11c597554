//! `novacron-witness KEY=VALUE…`: the program inside a lab guest that makes load and tells truth.
//!
//! Decides which threads run with which settings; the settings come from the kernel command line
//! through the guest's init. Sizes take K, M or G; a rate also `max`.
//!   pattern=BYTES working=BYTES rate=BYTES order=sequential|random pages=full|partial
//!   spread=dense|sparse data=BYTES compressible=0|1 disk=BYTES diskrate=BYTES diskpath=FILE
//!   readers=COUNT readpath=DISK

mod disk_load;
mod disk_readers;
mod memory_load;
mod pattern;
mod protocol;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk_load::DiskPlan;
use memory_load::{Command, Counters, LoadPlan, Order, Spread, UNLIMITED};
use pattern::{PAGE_BYTES, PageShare};
use protocol::Shared;

const PORT: u16 = 7070;
/// Period of the counter and of its line on the console.
const COUNTER_PERIOD: Duration = Duration::from_millis(100);
/// Period of the thread that measures how long it was kept from running.
const GAP_PERIOD: Duration = Duration::from_millis(1);
/// Linux's input event for the ACPI power button: type `EV_KEY`, code `KEY_POWER`, value 1.
const POWER_PRESSED: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];
const INPUT_EVENT_BYTES: usize = 24;

fn parse_bytes(text: &str) -> Option<u64> {
    if text == "max" {
        return Some(UNLIMITED);
    }
    let (digits, shift) = match text.chars().last()? {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

struct Settings(HashMap<String, String>);

impl Settings {
    fn bytes(&self, name: &str) -> Result<u64, String> {
        let text = self.0.get(name).map_or("0", String::as_str);
        parse_bytes(text).ok_or_else(|| format!("{name}={text} is not a size"))
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, String> {
        let Some(text) = self.0.get(name) else { return Ok(choices[0].1) };
        let found = choices.iter().find(|(word, _)| word == text);
        found.map(|(_, value)| *value).ok_or_else(|| format!("{name}={text} is not known"))
    }

    fn plan(&self) -> Result<LoadPlan, String> {
        let working = match self.bytes("working")? {
            0 => self.bytes("pattern")?,
            given => given.min(self.bytes("pattern")?),
        };
        let rate = self.bytes("rate")?;
        Ok(LoadPlan {
            running: rate > 0,
            rate_bytes_per_second: rate.min(UNLIMITED),
            working_set_pages: (working / PAGE_BYTES as u64) as u32,
            order: self.choice(
                "order", &[("random", Order::Random), ("sequential", Order::Sequential)])?,
            spread: self.choice("spread", &[("dense", Spread::Dense), ("sparse", Spread::Sparse)])?,
            share: self.choice("pages", &[("full", PageShare::Full), ("partial", PageShare::Partial)])?,
        })
    }
}

/// Tells init (process 1) by SIGPWR when the power button is pressed.
fn watch_power_button(path: PathBuf) {
    use std::io::Read;
    let Ok(mut device) = std::fs::File::open(path) else { return };
    let mut event = [0u8; INPUT_EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if event[16..] == POWER_PRESSED {
            // SAFETY: kill has no memory effects; process 1 always exists.
            unsafe { libc::kill(1, libc::SIGPWR) };
        }
    }
}

fn watch_gaps(shared: &Shared) {
    let mut last = Instant::now();
    loop {
        std::thread::sleep(GAP_PERIOD);
        let now = Instant::now();
        let gap = now.duration_since(last).as_micros() as u64;
        shared.longest_gap_micros.fetch_max(gap, Relaxed);
        last = now;
    }
}

fn count(shared: &Shared) {
    let mut next = Instant::now();
    loop {
        next += COUNTER_PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let count = shared.counter.fetch_add(1, Relaxed) + 1;
        let failures = shared.counters.failures.load(Relaxed)
            + shared.counters.disk_failures.load(Relaxed);
        println!("tick {count} failures {failures}");
    }
}

fn start_threads(settings: &Settings) -> Result<Arc<Shared>, String> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| format!("boot id: {error}"))?.trim().to_owned();
    let seed = boot_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let plan = settings.plan()?;
    let pattern_pages = (settings.bytes("pattern")? / PAGE_BYTES as u64) as u32;
    let counters = Arc::new(Counters::default());
    let disk = Arc::new(DiskPlan::default());
    disk.rate_bytes_per_second.store(settings.bytes("diskrate")?, Relaxed);
    let (commands, receiver) = mpsc::channel();
    let given = Arc::clone(&counters);
    std::thread::spawn(move || memory_load::run(seed, pattern_pages, plan, given, &receiver));
    let data_pages = (settings.bytes("data")? / PAGE_BYTES as u64) as u32;
    if data_pages > 0 {
        let kind = protocol::data_kind(settings.bytes("compressible")? == 1);
        let (done, filled) = mpsc::channel();
        let fill = Command::Fill { pages: data_pages, kind, done };
        commands.send(fill).map_err(|error| error.to_string())?;
        filled.recv().map_err(|error| error.to_string())?;
    }
    let disk_bytes = settings.bytes("disk")?;
    if disk_bytes > 0 {
        let path = PathBuf::from(settings.0.get("diskpath").map_or("/data/witness", String::as_str));
        let (disk, counters) = (Arc::clone(&disk), Arc::clone(&counters));
        std::thread::spawn(move || {
            if let Err(error) = disk_load::run(&path, disk_bytes, seed, &disk, Arc::clone(&counters)) {
                counters.disk_failures.fetch_add(1, Relaxed);
                println!("witness: disk load ended: {error}");
            }
        });
    }
    if let Some(path) = settings.0.get("readpath") {
        disk_readers::start(Path::new(path), settings.bytes("readers")?, seed);
    }
    Ok(Arc::new(Shared {
        boot_id, started: Instant::now(), counter: AtomicU64::new(0),
        longest_gap_micros: AtomicU64::new(0), pattern_pages, plan: Mutex::new(plan),
        counters, disk, commands,
    }))
}

fn run() -> Result<(), String> {
    let settings = Settings(
        std::env::args().skip(1)
            .filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect(),
    );
    for device in std::fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        std::thread::spawn(move || watch_power_button(device.path()));
    }
    let shared = start_threads(&settings)?;
    let counting = Arc::clone(&shared);
    std::thread::spawn(move || count(&counting));
    let timing = Arc::clone(&shared);
    std::thread::spawn(move || watch_gaps(&timing));
    let listener = TcpListener::bind(("0.0.0.0", PORT)).map_err(|error| format!("{PORT}: {error}"))?;
    println!("witness ready boot {} pattern {} pages", shared.boot_id, shared.pattern_pages);
    protocol::serve(&listener, &shared);
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("witness: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(parse_bytes("4096"), Some(4096));
        assert_eq!(parse_bytes("64M"), Some(64 << 20));
        assert_eq!(parse_bytes("max"), Some(UNLIMITED));
        for wrong in ["", "M", "1T", "-1", "1.5M", "99999999999G"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }
}
