//! The lease of one VMM as a state machine: events and a time in, an action out.
//!
//! Rules: a lease counts from when its renewal was sent, not from when it arrived; a renewal never
//! shortens it; once it ended the VMM stands, whatever arrives, until an explicit resume whose
//! question to the ledger was sent after the pause began. VMs without automatic fail-over are never
//! stopped. Who owns the VM is not decided here: the runner reads that from the ledger.

/// Whether a silent ledger stops this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    None,
    Automatic,
}

/// Longest lease that is believed: five times the lease of the ledger; more is a mistake of units.
pub const TTL_MS_MAX: u64 = 60_000;

/// What a renewal or a resume carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub ttl_ms: u64,
    /// `CLOCK_BOOTTIME` of this host when the ledger was asked.
    pub sent_at_ms: u64,
}

/// What has to be done to the VMM now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    Stop,
    Continue,
}

/// Why a grant was not taken; the text is for the runner's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TtlOutOfRange,
    SentInTheFuture,
    AlreadyOver,
    NotPaused,
    Paused,
    SentBeforeThePause,
}

impl Refusal {
    pub fn reason(self) -> &'static str {
        match self {
            Self::TtlOutOfRange => "ttlMs is 1 to 60000",
            Self::SentInTheFuture => "sentAtBoottimeMs lies in the future",
            Self::AlreadyOver => "that lease is over already",
            Self::NotPaused => "the VMM is not paused by its lease",
            Self::Paused => "the lease ended and the VMM is paused; only a resume lets it go on",
            Self::SentBeforeThePause => "the ledger was asked before the pause began",
        }
    }
}

/// Lease of one VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    failover: Failover,
    /// `None` until the first grant: an incoming VMM has no lease yet, and must load.
    ends_at_ms: Option<u64>,
    paused_at_ms: Option<u64>,
}

impl Lease {
    pub fn new(failover: Failover, ends_at_ms: Option<u64>) -> Self {
        Self { failover, ends_at_ms, paused_at_ms: None }
    }

    pub fn failover(&self) -> Failover {
        self.failover
    }

    pub fn ends_at_ms(&self) -> Option<u64> {
        self.ends_at_ms
    }

    pub fn paused_at_ms(&self) -> Option<u64> {
        self.paused_at_ms
    }

    /// When to look again: the end of a lease that can stop something.
    pub fn wakes_at_ms(&self) -> Option<u64> {
        match (self.failover, self.paused_at_ms) {
            (Failover::Automatic, None) => self.ends_at_ms,
            _ => None,
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now_ms: u64) -> Action {
        match self.wakes_at_ms() {
            Some(end) if now_ms >= end => {
                self.paused_at_ms = Some(now_ms);
                Action::Stop
            }
            _ => Action::Nothing,
        }
    }

    /// A renewal arrived. A lease that is over is not saved by it: the action may be `Stop`.
    pub fn renew(&mut self, grant: Grant, now_ms: u64) -> (Action, Result<(), Refusal>) {
        let action = self.tick(now_ms);
        if self.paused_at_ms.is_some() {
            return (action, Err(Refusal::Paused));
        }
        let taken = grant.end(now_ms).map(|end| {
            self.ends_at_ms = Some(self.ends_at_ms.map_or(end, |present| present.max(end)));
        });
        (action, taken)
    }

    /// The runner has read, after the pause began, that the VM is still its host's.
    pub fn resume(&mut self, grant: Grant, now_ms: u64) -> (Action, Result<(), Refusal>) {
        let action = self.tick(now_ms);
        let Some(paused_at_ms) = self.paused_at_ms else {
            return (action, Err(Refusal::NotPaused));
        };
        if grant.sent_at_ms < paused_at_ms {
            return (action, Err(Refusal::SentBeforeThePause));
        }
        match grant.end(now_ms) {
            Err(refusal) => (action, Err(refusal)),
            Ok(end) => {
                self.ends_at_ms = Some(end);
                self.paused_at_ms = None;
                // A pause decided by this very call has not reached the VMM: nothing to undo.
                let action =
                    if action == Action::Stop { Action::Nothing } else { Action::Continue };
                (action, Ok(()))
            }
        }
    }
}

impl Grant {
    /// When it ends, if it can be believed and is not over.
    fn end(self, now_ms: u64) -> Result<u64, Refusal> {
        if !(1..=TTL_MS_MAX).contains(&self.ttl_ms) {
            Err(Refusal::TtlOutOfRange)
        } else if self.sent_at_ms > now_ms {
            Err(Refusal::SentInTheFuture)
        } else if self.sent_at_ms + self.ttl_ms <= now_ms {
            Err(Refusal::AlreadyOver)
        } else {
            Ok(self.sent_at_ms + self.ttl_ms)
        }
    }
}
