//! Guest RAM of a VMM process: where it is mapped, what is dirty in it, and userfaultfd.
//!
//! Guest RAM is a shared file. The source reads it only by `pread`: a mapping of ours would refill
//! holes and hide the guest's own writes from nobody but would also not be tracked. What is dirty
//! comes from userfaultfd write-protection in async mode, collected by `PAGEMAP_SCAN`; what is
//! missing at the target of a post-copy comes from minor and missing faults of the same
//! userfaultfd. The VMM needs no part in it: the userfaultfd is made inside it by `ptrace`
//! (`inject`), which works for VMMs that were started before this program and under other names.
//! A preloaded library would need control over how each VMM is started, and adopted VMs have none.
//! What is done with pages and faults is left to `session`. Linux 6.7 on x86-64.

mod error;
mod file;
mod inject;
mod mapping;
mod tracking;
mod userfault;
mod zero;

pub use error::MemoryError;
pub use file::{MemoryFile, discard_range};
pub use inject::{SyscallCall, run_in_process};
pub use mapping::{GuestMapping, MappedRange};
pub use tracking::{DirtyTracker, ScanTotals, WriteMarks};
pub use tracking::pages_mapped_by;
pub use userfault::{Fault, FaultMode, Marks, Resolution, Userfault};
pub use zero::is_zero_page;
