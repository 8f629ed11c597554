//! What the parts of the engine take without a VMM, beside what the machine can do at all.
//!
//! `cargo run --release --example engine_figures [-- memory=BYTES data=BYTES runs=N directory=DIR]`
//! prints one JSON object a line: `{"part":…,"run":…,"ms":…,"bytes":…}`; `bytes` is null where
//! a part's figure is its time. Parts take turns, so that a busy machine disturbs all of them.
//! Medians and comparisons are made by `lab/bench/engine-series.ts`, which also removes what a
//! killed run leaves in `directory`.

#[path = "../../tests/support/mod.rs"]
#[allow(unreachable_pub, reason = "written for test binaries")]
mod support;

mod copies;
mod road;
mod rounds;
mod scans;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use copies::Copies;
use road::Kind;
use rounds::Rounds;
use scans::Scans;

/// Bytes of a chunk: all sizes here are whole chunks.
const CHUNK: u64 = 1 << 20;

/// How much is measured, and where the memory files are.
pub(crate) struct Settings {
    pub(crate) memory_bytes: u64,
    pub(crate) data_bytes: u64,
    runs: u32,
    pub(crate) directory: PathBuf,
}

impl Settings {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let directory = PathBuf::from("/dev/shm");
        let mut settings =
            Self { memory_bytes: 1 << 30, data_bytes: 224 << 20, runs: 3, directory };
        for word in words {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{key} wants a number"));
            match key {
                "memory" => settings.memory_bytes = number()?,
                "data" => settings.data_bytes = number()?,
                "runs" => settings.runs = number()?.try_into().map_err(|_| "too many runs")?,
                "directory" => settings.directory = PathBuf::from(value),
                _ => return Err(format!("unknown key {key:?}")),
            }
        }
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(CHUNK);
        if !whole(settings.memory_bytes) || !whole(settings.data_bytes) {
            return Err("memory and data are whole MiB above 0".to_owned());
        }
        if settings.data_bytes > settings.memory_bytes {
            return Err("data is at most memory".to_owned());
        }
        Ok(settings)
    }
}

/// What a part came to.
pub(crate) struct Figure {
    pub(crate) took: Duration,
    pub(crate) bytes: Option<u64>,
}

impl Figure {
    /// The time since `began` for that many bytes.
    pub(crate) fn since(began: Instant, bytes: u64) -> Self {
        Self { took: began.elapsed(), bytes: Some(bytes) }
    }
}

fn tell(part: &str, run: u32, figure: &Figure) {
    let bytes = figure.bytes.map_or_else(|| "null".to_owned(), |bytes| bytes.to_string());
    let ms = figure.took.as_secs_f64() * 1e3;
    println!("{{\"part\":\"{part}\",\"run\":{run},\"ms\":{ms:.4},\"bytes\":{bytes}}}");
}

fn main() -> Result<(), String> {
    let settings = Settings::parse(std::env::args().skip(1))?;
    let mut scans = Scans::new(&settings);
    let copies = Copies::new(&settings);
    let rounds: Vec<Rounds> =
        Kind::ALL.into_iter().map(|kind| Rounds::new(&settings, kind)).collect();
    for run in 1..=settings.runs {
        scans.measure(|part, figure| tell(part, run, &figure));
        copies.measure(|part, figure| tell(part, run, &figure));
        for rounds in &rounds {
            for lanes in [1, 2, 4] {
                rounds.measure(lanes, |part, figure| tell(part, run, &figure));
            }
        }
    }
    Ok(())
}
