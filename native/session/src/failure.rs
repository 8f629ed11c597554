//! What ends a session, in the words of the project's closed failure list.

use std::fmt;
use std::io::ErrorKind;

use novacron_guest_memory::MemoryError;
use novacron_transport::{LaneError, LinkError};

/// A code of contracts/failures.ts that a session can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    InputInvalid,
    LinkLost,
    LinkRefused,
    SessionLost,
    EngineTracking,
    EngineFailed,
    MigrationDigest,
    MigrationCancelled,
    DiskMirror,
    /// The memory file system of the target is full.
    PreflightMemory,
    OwnershipRefused,
    VmmTimeout,
    Internal,
}

impl FailureCode {
    /// The code as it is written in the list.
    pub fn name(self) -> &'static str {
        match self {
            Self::InputInvalid => "input/invalid",
            Self::LinkLost => "link/lost",
            Self::LinkRefused => "link/refused",
            Self::SessionLost => "runner/session-lost",
            Self::EngineTracking => "engine/tracking",
            Self::EngineFailed => "engine/failed",
            Self::MigrationDigest => "migration/digest",
            Self::MigrationCancelled => "migration/cancelled",
            Self::DiskMirror => "disk/mirror",
            Self::PreflightMemory => "preflight/memory",
            Self::OwnershipRefused => "ownership/refused",
            Self::VmmTimeout => "vmm/timeout",
            Self::Internal => "internal",
        }
    }
}

/// A failure with what and where; copied to everybody who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: FailureCode,
    pub detail: String,
}

impl Failure {
    pub fn new(code: FailureCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// The session was closed or aborted before an answer came.
    pub(crate) fn cancelled() -> Self {
        Self::new(FailureCode::MigrationCancelled, "the session was ended")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.detail)
    }
}

impl std::error::Error for Failure {}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let code = match &error {
            MemoryError::System { source, .. } if source.kind() == ErrorKind::StorageFull => {
                FailureCode::PreflightMemory
            }
            MemoryError::System { .. } => FailureCode::EngineFailed,
            _ => FailureCode::EngineTracking,
        };
        Self::new(code, error.to_string())
    }
}

impl From<LaneError> for Failure {
    fn from(error: LaneError) -> Self {
        Self::new(FailureCode::LinkLost, error.to_string())
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let code = if is_refusal(&error) { FailureCode::LinkRefused } else { FailureCode::LinkLost };
        Self::new(code, error.to_string())
    }
}

/// Whether trying again is pointless: the peer or its certificate is the problem, not the path.
pub(crate) fn is_refusal(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(_) | LinkError::Credentials(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_memory_file_system_is_told_from_other_errors() {
        // ENOSPC, EIO.
        for (number, code) in [(28, "preflight/memory"), (5, "engine/failed")] {
            let source = std::io::Error::from_raw_os_error(number);
            let failure = Failure::from(MemoryError::System { what: "writing", source });
            assert_eq!(failure.code.name(), code);
        }
    }
}
