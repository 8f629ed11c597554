//! The thread that owns the checked memory: it rewrites the working set at the set rate, checks
//! each page before it rewrites it, and sweeps over everything else in the background.
//!
//! One thread owns all pages, so no lock is between a check and a write. It leaves the protocol
//! to `protocol` and the content of a page to `pattern`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pattern::{self, Choice, DataKind, PAGE_BYTES, Page, PageShare};

/// From this rate on the load writes as fast as it can.
pub(crate) const UNLIMITED: u64 = 1 << 50;
/// Pages written between two looks at the clock and the commands; about a third of a ms.
const BATCH_PAGES: u64 = 64;
/// Pause of a limited load between two batches of writes, ms.
const TICK: Duration = Duration::from_millis(2);
/// Pages swept after each batch: at rest 8 MB/s, little beside any dirty rate worth a test.
const SWEEP_PAGES: usize = 4;
/// Failures that are printed; all are counted.
const PRINTED_FAILURES_MAX: u64 = 20;

/// Order in which the pages of the working set are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    Sequential,
    Random,
}

/// Where the working set lies in the pattern: its first pages, or one page in every so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spread {
    Dense,
    Sparse,
}

/// What the load does; every field can be changed while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadPlan {
    pub(crate) running: bool,
    pub(crate) rate_bytes_per_second: u64,
    pub(crate) working_set_pages: u32,
    pub(crate) order: Order,
    pub(crate) spread: Spread,
    pub(crate) share: PageShare,
}

/// Counters that other threads read; failures are never reset.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) pages_written: AtomicU64,
    pub(crate) pages_checked: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) sweeps: AtomicU64,
    pub(crate) achieved_bytes_per_second: AtomicU64,
    pub(crate) data_bytes: AtomicU64,
    pub(crate) disk_bytes_written: AtomicU64,
    pub(crate) disk_bytes_checked: AtomicU64,
    pub(crate) disk_failures: AtomicU64,
}

/// What the protocol asks of the memory thread; each is answered when it is done.
pub(crate) enum Command {
    SetPlan(LoadPlan, Sender<u64>),
    /// Adds resident data.
    Fill { pages: u32, kind: DataKind, done: Sender<u64> },
    /// Checks everything now; answers with the failures so far.
    Verify(Sender<u64>),
}

struct Segment {
    first_page: u32,
    kind: DataKind,
    pages: Vec<Page>,
}

struct MemoryLoad {
    seed: u64,
    pages: Vec<Page>,
    generations: Vec<u32>,
    data: Vec<Segment>,
    plan: LoadPlan,
    choice: Choice,
    next: u32,
    sweep: usize,
    counters: Arc<Counters>,
}

/// Runs until the other end of `commands` is gone.
pub(crate) fn run(
    seed: u64, pattern_pages: u32, plan: LoadPlan, counters: Arc<Counters>,
    commands: &Receiver<Command>,
) {
    let mut load = MemoryLoad::new(seed, pattern_pages, plan, counters);
    let mut credit = 0u64;
    let mut last = Instant::now();
    let mut window = (Instant::now(), 0u64);
    loop {
        let busy = load.plan.running && load.plan.rate_bytes_per_second >= UNLIMITED;
        let wait = if busy { Duration::ZERO } else { TICK };
        match commands.recv_timeout(wait) {
            Ok(command) => load.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        let elapsed = now.duration_since(last);
        last = now;
        let pages = load.due_pages(elapsed, &mut credit);
        window.1 += pages;
        load.write_pages(pages);
        load.sweep_pages(SWEEP_PAGES);
        let seconds = now.duration_since(window.0).as_secs_f64();
        if seconds >= 1.0 {
            let rate = (window.1 * PAGE_BYTES as u64) as f64 / seconds;
            load.counters.achieved_bytes_per_second.store(rate as u64, Relaxed);
            window = (now, 0);
        }
    }
}

impl MemoryLoad {
    fn new(seed: u64, pattern_pages: u32, plan: LoadPlan, counters: Arc<Counters>) -> Self {
        let mut pages = Vec::with_capacity(pattern_pages as usize);
        let mut generations = Vec::with_capacity(pattern_pages as usize);
        for page in 0..pattern_pages {
            let mut words = Page::zeroed();
            generations.push(pattern::rewrite(&mut words, seed, page, 0, PageShare::Full));
            pages.push(words);
        }
        let choice = Choice::new(seed);
        let data = Vec::new();
        Self { seed, pages, generations, data, plan, choice, next: 0, sweep: 0, counters }
    }

    /// Pages that the rate allows by now. Time in which the VM did not run is not caught up on:
    /// at most 50 ms count, or a pause would end in a burst that no rate asked for.
    fn due_pages(&self, elapsed: Duration, credit: &mut u64) -> u64 {
        if !self.plan.running || self.plan.working_set_pages == 0 {
            *credit = 0;
            return 0;
        }
        if self.plan.rate_bytes_per_second >= UNLIMITED {
            return BATCH_PAGES;
        }
        let micros = elapsed.min(Duration::from_millis(50)).as_micros() as u64;
        *credit += self.plan.rate_bytes_per_second.saturating_mul(micros) / 1_000_000;
        let pages = *credit / PAGE_BYTES as u64;
        *credit %= PAGE_BYTES as u64;
        pages
    }

    fn stride(&self) -> u32 {
        match self.plan.spread {
            Spread::Dense => 1,
            Spread::Sparse => self.pages.len() as u32 / self.plan.working_set_pages.max(1),
        }
    }

    fn write_pages(&mut self, count: u64) {
        let working_set = self.plan.working_set_pages;
        let stride = self.stride();
        for _ in 0..count {
            let turn = match self.plan.order {
                Order::Random => self.choice.below(working_set),
                Order::Sequential => {
                    self.next = if self.next + 1 < working_set { self.next + 1 } else { 0 };
                    self.next
                }
            };
            let page = turn * stride;
            let index = page as usize;
            self.check_pattern(index);
            let generation = self.generations[index];
            // After a good 500 million writes a page starts over; the check above still held.
            let generation = if generation > u32::MAX - 16 { 0 } else { generation };
            let share = if generation == 0 { PageShare::Full } else { self.plan.share };
            self.generations[index] =
                pattern::rewrite(&mut self.pages[index], self.seed, page, generation, share);
        }
        self.counters.pages_written.fetch_add(count, Relaxed);
    }

    fn check_pattern(&mut self, index: usize) {
        let page = index as u32;
        if let Err(damage) =
            pattern::check(&self.pages[index], self.seed, page, self.generations[index])
        {
            let count = self.counters.failures.fetch_add(1, Relaxed);
            if count < PRINTED_FAILURES_MAX {
                println!("witness: page {page} is damaged: {damage:?}");
            }
            // Written anew, or one bad page would be counted at every sweep.
            let generation = self.generations[index];
            self.generations[index] = pattern::rewrite(
                &mut self.pages[index], self.seed, page, generation, PageShare::Full);
        }
    }

    fn check_data(&mut self, segment: usize, index: usize) {
        let Segment { first_page, kind, pages } = &mut self.data[segment];
        let page = *first_page + index as u32;
        if !pattern::data_holds(&pages[index], self.seed, page, *kind) {
            let count = self.counters.failures.fetch_add(1, Relaxed);
            if count < PRINTED_FAILURES_MAX {
                println!("witness: data page {page} is damaged");
            }
            pattern::write_data(&mut pages[index], self.seed, page, *kind);
        }
    }

    fn sweep_pages(&mut self, count: usize) {
        let total = self.pages.len() + self.data.iter().map(|part| part.pages.len()).sum::<usize>();
        for _ in 0..count.min(total) {
            if self.sweep >= total {
                self.sweep = 0;
                self.counters.sweeps.fetch_add(1, Relaxed);
            }
            let mut at = self.sweep;
            self.sweep += 1;
            if at < self.pages.len() {
                self.check_pattern(at);
                continue;
            }
            at -= self.pages.len();
            for segment in 0..self.data.len() {
                let length = self.data[segment].pages.len();
                if at < length {
                    self.check_data(segment, at);
                    break;
                }
                at -= length;
            }
        }
        self.counters.pages_checked.fetch_add(count.min(total) as u64, Relaxed);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::SetPlan(plan, done) => {
                self.plan = plan;
                self.plan.working_set_pages = plan.working_set_pages.min(self.pages.len() as u32);
                self.next = 0;
                let _ = done.send(0);
            }
            Command::Fill { pages, kind, done } => {
                self.fill(pages, kind);
                let _ = done.send(self.counters.data_bytes.load(Relaxed));
            }
            Command::Verify(done) => {
                let total: usize = self.data.iter().map(|part| part.pages.len()).sum();
                self.sweep = 0;
                self.sweep_pages(self.pages.len() + total);
                let _ = done.send(self.counters.failures.load(Relaxed));
            }
        }
    }

    fn fill(&mut self, count: u32, kind: DataKind) {
        let first_page = self.data.last().map_or(0, |last| last.first_page + last.pages.len() as u32);
        let mut pages = Vec::with_capacity(count as usize);
        for page in first_page..first_page + count {
            let mut words = Page::zeroed();
            pattern::write_data(&mut words, self.seed, page, kind);
            pages.push(words);
        }
        self.data.push(Segment { first_page, kind, pages });
        self.counters.data_bytes.fetch_add(u64::from(count) * PAGE_BYTES as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(plan: LoadPlan) -> MemoryLoad {
        MemoryLoad::new(3, 64, plan, Arc::new(Counters::default()))
    }

    const PLAN: LoadPlan = LoadPlan {
        running: true,
        rate_bytes_per_second: 4096 * 1000,
        working_set_pages: 16,
        order: Order::Random,
        spread: Spread::Sparse,
        share: PageShare::Partial,
    };

    #[test]
    fn a_damaged_page_is_counted_once() {
        let mut load = load(PLAN);
        load.pages[40].0[100] ^= 4;
        load.sweep_pages(64);
        load.sweep_pages(64);
        assert_eq!(load.counters.failures.load(Relaxed), 1);
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut load = load(LoadPlan { spread: Spread::Dense, ..PLAN });
        let before = load.pages.clone();
        load.write_pages(200);
        assert_eq!(load.counters.failures.load(Relaxed), 0);
        load.pages = before;
        load.sweep_pages(64);
        assert_eq!(load.counters.failures.load(Relaxed), 16);
    }

    #[test]
    fn sparse_touches_only_every_fourth_page() {
        let mut load = load(PLAN);
        load.write_pages(500);
        for (page, generation) in load.generations.iter().enumerate() {
            assert_eq!(*generation > pattern::FIRST_GENERATION, page % 4 == 0, "page {page}");
        }
    }

    #[test]
    fn data_is_checked_by_the_sweep() {
        let mut load = load(PLAN);
        load.fill(8, DataKind::Compressible);
        load.fill(8, DataKind::Incompressible);
        load.data[1].pages[3].0[0] ^= 1;
        load.sweep_pages(80);
        assert_eq!(load.counters.failures.load(Relaxed), 1);
    }

    #[test]
    fn rate_is_kept_and_pauses_are_not_caught_up_on() {
        let load = load(PLAN);
        let mut credit = 0;
        let pages: u64 =
            (0..500).map(|_| load.due_pages(Duration::from_millis(2), &mut credit)).sum();
        assert!((999..=1000).contains(&pages), "{pages}");
        assert!(load.due_pages(Duration::from_secs(10), &mut credit) <= 51);
    }
}
