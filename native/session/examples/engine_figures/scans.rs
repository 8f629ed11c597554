//! Collecting dirty pages of a guest whose memory is all there.

use std::time::Instant;

use novacron_guest_memory::DirtyTracker;
use novacron_guest_process::GuestProcess;

use crate::support::PAGE;
use crate::{Figure, Settings};

/// Pages that lie this far apart share no run; a prime, so that every page is met once.
const STRIDE: u64 = 7919;

pub(crate) struct Scans {
    guest: GuestProcess,
    tracker: DirtyTracker,
    pages: u64,
}

impl Scans {
    pub(crate) fn new(settings: &Settings) -> Self {
        let bytes = settings.memory_bytes;
        let guest = GuestProcess::start(&settings.directory.join("scanned"), bytes);
        let pages = bytes / PAGE;
        guest.write_pages(0, pages, 1);
        let mut tracker =
            DirtyTracker::start(guest.pid(), guest.path(), bytes).expect("tracking starts");
        tracker.collect(|_, _| {}).expect("armed");
        Self { guest, tracker, pages }
    }

    pub(crate) fn measure(&mut self, mut tell: impl FnMut(&str, Figure)) {
        for (part, dirty) in [
            ("scan-clean", 0),
            ("scan-500", 500.min(self.pages)),
            ("scan-5-percent", self.pages / 20),
        ] {
            (0..dirty).for_each(|n| self.guest.write_pages(n * STRIDE % self.pages, 1, n));
            tell(part, self.collect(dirty));
        }
        self.guest.write_pages(0, self.pages, 2);
        tell("scan-all", self.collect(self.pages));
    }

    fn collect(&mut self, dirty: u64) -> Figure {
        let began = Instant::now();
        let mut seen = 0;
        self.tracker.collect(|_, count| seen += count).expect("a scan");
        let took = began.elapsed();
        assert_eq!(seen, dirty, "a scan reports what was written, nothing else");
        Figure { took, bytes: None }
    }
}
