//! The guard: parent process of one VMM, so small that nothing in it has a reason to fail.
//!
//! It decides two things only: under which rights the VMM runs, and when it must stop because its
//! lease ended. It leaves everything else to the runner, whose death it outlives: the runner finds
//! `guard.json` again and talks to `guard.sock`. One thread, no locks, all waiting in one `poll`.
//!
//! ```text
//!   runner ─ exec ─► guard ─ fork ─► daemon (session of its own) ─ fork ─► VMM (uid, no rights)
//!      ▲               │ exit 0 once       │  guard.json before the VMM's first instruction
//!      └───────────────┘ the VMM runs      │  exit.json after it was reaped
//! ```
//!
//! `lease` is the pure part; `launch` and `daemon` hold the system calls.

pub mod arguments;
pub mod clock;
pub mod daemon;
pub mod launch;
pub mod lease;
pub mod record;
pub mod talk;
