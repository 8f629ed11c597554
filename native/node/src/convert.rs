//! Numbers, credentials and errors on their way between JavaScript and `session`.

use std::path::PathBuf;
use std::time::Duration;

use napi::{Error, Result, Status};
use napi_derive::napi;
use novacron_session::{Failure, FailureCode};
use novacron_transport::tls::{CredentialFiles, Credentials};

/// 2^53 - 1, the largest whole number that JavaScript keeps exactly.
const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;

/// Certificate files of a host and what it refuses.
#[napi(object, use_nullable = true)]
pub struct NativeTls {
    pub cert_path: String,
    pub key_path: String,
    pub ca_path: String,
    pub revoked_serials: Vec<String>,
}

/// What ended a session.
#[napi(object, use_nullable = true)]
pub struct NativeFailure {
    pub code: String,
    pub detail: String,
}

impl From<Failure> for NativeFailure {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code.name().into(), detail: failure.detail }
    }
}

pub(crate) fn to_error(failure: &Failure) -> Error {
    Error::new(Status::GenericFailure, failure.to_string())
}

pub(crate) fn invalid(what: &str) -> Error {
    to_error(&Failure::new(FailureCode::InputInvalid, what))
}

/// The error of a method of a session that was closed.
pub(crate) fn closed() -> Error {
    to_error(&Failure::new(FailureCode::Internal, "the handle is closed"))
}

/// A whole number from 0 to 2^53 - 1.
pub(crate) fn whole(value: f64, what: &str) -> Result<u64> {
    if value.fract() == 0.0 && (0.0..=WHOLE_MAX).contains(&value) {
        return Ok(value as u64);
    }
    Err(invalid(&format!("{what} must be a whole number from 0 to 2^53-1, got {value}")))
}

/// A whole number that fits a smaller type.
pub(crate) fn small<T: TryFrom<u64>>(value: f64, what: &str) -> Result<T> {
    T::try_from(whole(value, what)?).map_err(|_| invalid(&format!("{what} is out of range: {value}")))
}

/// Milliseconds: finite and not negative.
pub(crate) fn millis(value: f64, what: &str) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(invalid(&format!("{what} must be a finite number of at least 0, got {value}")))
}

/// A time-out: milliseconds, at most a day.
pub(crate) fn timeout(value: f64, what: &str) -> Result<Duration> {
    const DAY_MS: f64 = 86_400_000.0;
    if millis(value, what)? <= DAY_MS {
        return Ok(Duration::from_micros((value * 1000.0) as u64));
    }
    Err(invalid(&format!("{what} is more than a day: {value}")))
}

pub(crate) fn digest_hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// Reads the files; unusable ones are the caller's mistake.
pub(crate) fn credentials(tls: &NativeTls) -> Result<Credentials> {
    let files = CredentialFiles {
        ca: PathBuf::from(&tls.ca_path),
        certificate: PathBuf::from(&tls.cert_path),
        key: PathBuf::from(&tls.key_path),
        revoked: None,
    };
    let credentials = Credentials::load(&files).map_err(|error| invalid(&error.to_string()))?;
    let serials = tls.revoked_serials.join("\n");
    credentials.revoked().replace(&serials).map_err(|error| invalid(&error.to_string()))?;
    Ok(credentials)
}
