//! The line protocol on TCP: one JSON object a line in, one a line out.
//!
//! Decides names and units of the protocol; leaves the work to the load threads. A client that
//! sends more than a line's length or nonsense gets an error line and is dropped; the lab's own
//! segment is the only network that reaches this port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::disk_load::DiskPlan;
use crate::memory_load::{Command, Counters, LoadPlan, Order, Spread, UNLIMITED};
use crate::pattern::{DataKind, PAGE_BYTES, PageShare};

/// Longest request line; requests are a few fields.
const LINE_BYTES_MAX: u64 = 4096;

/// A request; fields that are left out keep their value.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    op: String,
    dirty_rate_bytes_per_second: Option<u64>,
    working_set_bytes: Option<u64>,
    order: Option<Order>,
    spread: Option<Spread>,
    /// `full` or `partial`.
    pages: Option<String>,
    bytes: Option<u64>,
    compressible: Option<bool>,
    disk_rate_bytes_per_second: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: u8,
    boot_id: String,
    counter: u64,
    uptime_ms: u64,
    self_check_failures: u64,
    pages_written: u64,
    pages_checked: u64,
    sweeps: u64,
    pattern_bytes: u64,
    working_set_bytes: u64,
    data_bytes: u64,
    running: bool,
    dirty_rate_bytes_per_second: u64,
    dirty_rate_achieved_bytes_per_second: u64,
    order: Order,
    spread: Spread,
    pages: &'static str,
    longest_gap_ms: f64,
    disk_bytes_written: u64,
    disk_bytes_checked: u64,
    disk_failures: u64,
    disk_rate_bytes_per_second: u64,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) boot_id: String,
    pub(crate) started: Instant,
    pub(crate) counter: AtomicU64,
    pub(crate) longest_gap_micros: AtomicU64,
    pub(crate) pattern_pages: u32,
    pub(crate) plan: Mutex<LoadPlan>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) disk: Arc<DiskPlan>,
    pub(crate) commands: Sender<Command>,
}

impl Shared {
    fn status(&self) -> Status {
        let plan = self.plan();
        let counters = &self.counters;
        Status {
            version: 1,
            boot_id: self.boot_id.clone(),
            counter: self.counter.load(Relaxed),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            self_check_failures: counters.failures.load(Relaxed)
                + counters.disk_failures.load(Relaxed),
            pages_written: counters.pages_written.load(Relaxed),
            pages_checked: counters.pages_checked.load(Relaxed),
            sweeps: counters.sweeps.load(Relaxed),
            pattern_bytes: u64::from(self.pattern_pages) * PAGE_BYTES as u64,
            working_set_bytes: u64::from(plan.working_set_pages) * PAGE_BYTES as u64,
            data_bytes: counters.data_bytes.load(Relaxed),
            running: plan.running,
            dirty_rate_bytes_per_second: plan.rate_bytes_per_second,
            dirty_rate_achieved_bytes_per_second: counters.achieved_bytes_per_second.load(Relaxed),
            order: plan.order,
            spread: plan.spread,
            pages: if plan.share == PageShare::Full { "full" } else { "partial" },
            longest_gap_ms: self.longest_gap_micros.load(Relaxed) as f64 / 1000.0,
            disk_bytes_written: counters.disk_bytes_written.load(Relaxed),
            disk_bytes_checked: counters.disk_bytes_checked.load(Relaxed),
            disk_failures: counters.disk_failures.load(Relaxed),
            disk_rate_bytes_per_second: self.disk.rate_bytes_per_second.load(Relaxed),
        }
    }

    fn plan(&self) -> LoadPlan {
        *self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn ask(&self, build: impl FnOnce(Sender<u64>) -> Command) -> Result<u64, String> {
        let (done, answer) = mpsc::channel();
        self.commands.send(build(done)).map_err(|_| "the memory thread is gone".to_owned())?;
        answer.recv().map_err(|_| "the memory thread is gone".to_owned())
    }

    fn apply(&self, change: impl FnOnce(&mut LoadPlan)) -> Result<(), String> {
        let mut plan = self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut plan);
        plan.working_set_pages = plan.working_set_pages.min(self.pattern_pages);
        let sent = *plan;
        drop(plan);
        self.ask(|done| Command::SetPlan(sent, done)).map(|_| ())
    }

    fn set(&self, request: &Request) -> Result<(), String> {
        let share = match request.pages.as_deref() {
            None => None,
            Some("full") => Some(PageShare::Full),
            Some("partial") => Some(PageShare::Partial),
            Some(other) => return Err(format!("pages is full or partial, not {other}")),
        };
        if let Some(rate) = request.disk_rate_bytes_per_second {
            self.disk.rate_bytes_per_second.store(rate, Relaxed);
        }
        self.apply(|plan| {
            if let Some(rate) = request.dirty_rate_bytes_per_second {
                plan.rate_bytes_per_second = rate.min(UNLIMITED);
            }
            if let Some(bytes) = request.working_set_bytes {
                plan.working_set_pages = (bytes / PAGE_BYTES as u64).min(u64::from(u32::MAX)) as u32;
            }
            plan.order = request.order.unwrap_or(plan.order);
            plan.spread = request.spread.unwrap_or(plan.spread);
            plan.share = share.unwrap_or(plan.share);
        })
    }

    fn perform(&self, request: &Request) -> Result<(), String> {
        match request.op.as_str() {
            "status" => Ok(()),
            "start" => self.apply(|plan| plan.running = true),
            "stop" => self.apply(|plan| plan.running = false),
            "set" => self.set(request),
            "verify" => self.ask(Command::Verify).map(|_| ()),
            "fill" => {
                let bytes = request.bytes.ok_or("fill needs bytes")?;
                let kind = data_kind(request.compressible.unwrap_or(false));
                let pages = u32::try_from(bytes / PAGE_BYTES as u64).map_err(|_| "too much")?;
                self.ask(|done| Command::Fill { pages, kind, done }).map(|_| ())
            }
            other => Err(format!("no operation {other}: status start stop set verify fill")),
        }
    }

    /// Every request is answered with the status after it, or with an error.
    fn answer(&self, line: &str) -> String {
        let parsed = if line.starts_with('{') {
            serde_json::from_str::<Request>(line).map_err(|error| error.to_string())
        } else {
            Ok(Request { op: line.to_owned(), ..Request::default() })
        };
        let result = parsed.and_then(|request| self.perform(&request));
        let text = match result {
            Ok(()) => serde_json::to_string(&self.status()),
            Err(message) => serde_json::to_string(&serde_json::json!({ "error": message })),
        };
        text.unwrap_or_else(|_| "{\"error\":\"no answer\"}".to_owned())
    }
}

/// The kind of resident data by the flag of the protocol.
pub(crate) fn data_kind(compressible: bool) -> DataKind {
    if compressible { DataKind::Compressible } else { DataKind::Incompressible }
}

/// Serves for ever.
pub(crate) fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming().flatten() {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || converse(connection, &shared));
    }
}

fn converse(connection: TcpStream, shared: &Shared) {
    let _ = connection.set_nodelay(true);
    let Ok(mut writer) = connection.try_clone() else { return };
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = String::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(count) if count > 0 && line.ends_with('\n') => {}
            _ => return,
        }
        let answer = shared.answer(line.trim());
        if writer.write_all(answer.as_bytes()).and_then(|()| writer.write_all(b"\n")).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let (commands, receiver) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let plan = LoadPlan {
            running: false, rate_bytes_per_second: 0, working_set_pages: 4,
            order: Order::Random, spread: Spread::Dense, share: PageShare::Full,
        };
        let given = Arc::clone(&counters);
        std::thread::spawn(move || crate::memory_load::run(1, 16, plan, given, &receiver));
        Shared {
            boot_id: "b".to_owned(), started: Instant::now(), counter: AtomicU64::new(0),
            longest_gap_micros: AtomicU64::new(0), pattern_pages: 16, plan: Mutex::new(plan),
            counters, disk: Arc::new(DiskPlan::default()), commands,
        }
    }

    #[test]
    fn settings_are_applied_and_bounded() {
        let shared = shared();
        let answer = shared.answer(
            r#"{"op":"set","workingSetBytes":99999999,"dirtyRateBytesPerSecond":5,"pages":"partial"}"#);
        assert!(answer.contains(r#""workingSetBytes":65536"#), "{answer}");
        assert!(answer.contains(r#""dirtyRateBytesPerSecond":5"#), "{answer}");
        assert!(shared.answer("start").contains(r#""running":true"#));
        assert!(shared.answer(r#"{"op":"fill","bytes":8192}"#).contains(r#""dataBytes":8192"#));
        assert!(shared.answer("verify").contains(r#""selfCheckFailures":0"#));
    }

    #[test]
    fn nonsense_is_refused() {
        let shared = shared();
        for line in ["", "{", "{}", r#"{"op":"set","x":1}"#, r#"{"op":"set","pages":"half"}"#, "fly"] {
            assert!(shared.answer(line).contains("\"error\""), "{line}");
        }
    }
}
