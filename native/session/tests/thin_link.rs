//! Post-copy over a link that is slower than the push would like.

mod support;

use std::time::{Duration, Instant};

use novacron_session::FinishMode;
use support::thin_link::ThinLink;
use support::{Lab, Try, Wanted, assert_equal};

const RATE: u64 = 20_000_000;
/// 400 ms of the link.
const QUEUE_BYTES: usize = 8_000_000;

/// A guest of which every page with data is missing at the target, over a thin link.
fn post_copy(bytes: u64, pages: u64) -> (Lab, ThinLink, Try) {
    let lab = Lab::new(bytes);
    let link = ThinLink::start(lab.address(), RATE, QUEUE_BYTES);
    let wanted = Wanted { bytes, post_copy: true, way: Some(link.address), ..Wanted::default() };
    let attempt = lab.start(&wanted);
    attempt.source.connect().wait().expect("connected");
    // Decided for post-copy nothing more is sent before the last pass.
    attempt.source.post_copy_now().expect("consent");
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("an empty guest converges");
    lab.guest.write_pages(0, pages, 7);
    let finished = attempt.source.finish_memory(FinishMode::PostCopy).expect("asked").wait();
    let missing = finished.expect("the list").missing_pages;
    assert!(missing >= pages, "{missing} of {pages} missing");
    attempt.target.memory_in().wait().expect("memory is in");
    (lab, link, attempt)
}

/// Reads pages from the far end of what is pushed until the target is whole; answers how long each
/// took that really had to come over, ascending.
fn fault_latencies(lab: &Lab, attempt: &Try, pages: u64) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for page in (0..pages).rev().step_by(61) {
        if attempt.target.whole().peek().is_some() {
            break;
        }
        let before = attempt.target.snapshot().faults;
        let began = Instant::now();
        assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
        if attempt.target.snapshot().faults > before {
            latencies.push(began.elapsed());
        }
    }
    latencies.sort();
    latencies
}

#[test]
fn a_fault_does_not_queue_behind_the_push() {
    let pages = 6_000;
    let (lab, link, attempt) = post_copy(64 << 20, pages);
    link.longest_queue();
    let whole = attempt.source.serve_post_copy();
    let latencies = fault_latencies(&lab, &attempt, pages);
    let digest = attempt.target.whole().wait().expect("whole");
    assert_eq!(whole.wait(), Ok(digest));
    assert_equal(&lab.guest, &attempt.incoming);
    let queue = link.longest_queue();
    println!("{} faults, longest queue {queue} bytes", latencies.len());
    assert!(queue < QUEUE_BYTES / 2, "{queue} bytes queued before a fault");
}

#[test]
#[ignore = "figures: run with --release --ignored --nocapture"]
fn figures_of_faults_over_a_thin_link() {
    let pages = 40_000;
    let (lab, link, attempt) = post_copy(256 << 20, pages);
    link.longest_queue();
    let began = Instant::now();
    attempt.source.serve_post_copy();
    let latencies = fault_latencies(&lab, &attempt, pages);
    attempt.target.whole().wait().expect("whole");
    let seconds = began.elapsed().as_secs_f64();
    let last = (latencies.len() - 1) as f64;
    let at = |part: f64| latencies[(last * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{} faults: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, longest queue {} bytes; {:.1} MB/s",
        latencies.len(), at(0.5), at(0.9), at(0.99), link.longest_queue(),
        attempt.source.snapshot().wire_bytes as f64 / seconds / 1e6,
    );
}
