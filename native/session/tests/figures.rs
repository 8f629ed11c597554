//! What a move takes without a VMM: figures, not a verdict.

mod support;

use std::time::{Duration, Instant};

use novacron_session::FinishMode;
use support::{Lab, Wanted};

/// Data of the guest that the project's budgets are written for.
const DATA_PAGES: u64 = 57_400;

#[test]
#[ignore = "figures: run with --release --ignored --nocapture"]
fn figures_of_a_gibibyte_with_235_megabytes() {
    let bytes = 1 << 30;
    let lab = Lab::new(bytes);
    lab.guest.write_pages(0, DATA_PAGES, 1);
    for run in 0..9 {
        let attempt = lab.start(&Wanted { bytes, ..Wanted::default() });
        attempt.source.connect().wait().expect("connected");
        let began = Instant::now();
        attempt.source.start_pre_copy().expect("started");
        let answer = attempt.source.converged().wait().expect("converged");
        let converged = began.elapsed();
        lab.guest.write_pages(1000 * run, 500, run);
        let asked = Instant::now();
        let finished = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked").wait();
        let finished = finished.expect("the last pass");
        let record = attempt.target.memory_in().wait().expect("memory is in");
        let in_ms = asked.elapsed().as_secs_f64() * 1e3;
        assert_eq!(record.digest, finished.digest);
        println!(
            "run {run}: rounds over after {:.0} ms ({:.2} GB/s), last pass {} pages: scan {:.2}, holes \
             {:.2}, sent {:.2}, applied {in_ms:.2} ms; {}",
            converged.as_secs_f64() * 1e3,
            (DATA_PAGES * 4096) as f64 / converged.as_secs_f64() / 1e9,
            finished.last_pass_pages, finished.scan_ms, finished.holes_ms, finished.send_ms,
            answer.reason,
        );
        attempt.end_source();
        attempt.target.end();
        std::thread::sleep(Duration::from_millis(50));
    }
    let from = vec![7_u8; (DATA_PAGES * 4096) as usize];
    let mut to = vec![0_u8; from.len()];
    to.copy_from_slice(&from);
    let began = Instant::now();
    to.copy_from_slice(std::hint::black_box(&from));
    let memcpy = std::hint::black_box(&to).len() as f64 / began.elapsed().as_secs_f64() / 1e9;
    println!("memcpy of the same bytes in memory that is mapped: {memcpy:.2} GB/s");
    let status = std::fs::read_to_string("/proc/self/status").expect("own status");
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}
