//! What is said on the guard's socket: one JSON object a line in, one line out.

use crate::lease::{Failover, Grant, Lease};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of commands, answers and records. A guard lives as long as its VM and so meets runners
/// of later builds: they tell by this what it understands.
pub const TALK_VERSION: u32 = 1;
/// Longest line; a command is below 200 bytes.
pub const LINE_BYTES_MAX: usize = 4096;

/// A command of the runner.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    Status(Empty),
    Renew(GrantOrder),
    Resume(GrantOrder),
    StopVmm(StopOrder),
}

/// No fields yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// A lease, as the runner got it from the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantOrder {
    pub ttl_ms: u64,
    pub sent_at_boottime_ms: u64,
}

impl From<GrantOrder> for Grant {
    fn from(order: GrantOrder) -> Self {
        Self { ttl_ms: order.ttl_ms, sent_at_ms: order.sent_at_boottime_ms }
    }
}

/// How the VMM is asked to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopOrder {
    #[serde(default)]
    pub signal: StopSignal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopSignal {
    #[default]
    Term,
    Kill,
}

/// Parses one line; the error is a text for the runner.
pub fn parse(line: &[u8]) -> Result<Command, String> {
    let wrong = |cause| format!("not a command: {cause}");
    let mut fields: Map<String, Value> = serde_json::from_slice(line).map_err(wrong)?;
    let version = fields.remove("version").ok_or("a command has a version")?;
    if version != TALK_VERSION {
        return Err(format!("version {version} is not spoken here, but {TALK_VERSION}"));
    }
    serde_json::from_value(Value::Object(fields)).map_err(wrong)
}

/// The answer to every command: what was refused, if anything, and how things stand.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer<'a> {
    pub version: u32,
    pub ok: bool,
    pub error: Option<String>,
    pub incarnation: &'a str,
    pub vmm_pid: i32,
    pub failover: &'static str,
    pub lease_paused: bool,
    pub lease_paused_at_boottime_ms: Option<u64>,
    pub lease_ends_at_boottime_ms: Option<u64>,
    pub now_boottime_ms: u64,
}

impl<'a> Answer<'a> {
    pub fn new(
        outcome: Result<(), String>,
        incarnation: &'a str,
        vmm_pid: i32,
        lease: &Lease,
        now_ms: u64,
    ) -> Self {
        Self {
            version: TALK_VERSION,
            ok: outcome.is_ok(),
            error: outcome.err(),
            incarnation,
            vmm_pid,
            failover: failover_name(lease.failover()),
            lease_paused: lease.paused_at_ms().is_some(),
            lease_paused_at_boottime_ms: lease.paused_at_ms(),
            lease_ends_at_boottime_ms: lease.ends_at_ms(),
            now_boottime_ms: now_ms,
        }
    }

    pub fn line(&self) -> Vec<u8> {
        // Numbers, texts and booleans always serialise.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

pub fn failover_name(failover: Failover) -> &'static str {
    match failover {
        Failover::None => "none",
        Failover::Automatic => "automatic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood() {
        let order = GrantOrder { ttl_ms: 12, sent_at_boottime_ms: 7 };
        let stop = |signal| Command::StopVmm(StopOrder { signal });
        for (line, command) in [
            (r#"{"version":1,"status":{}}"#, Command::Status(Empty {})),
            (r#"{"version":1,"renew":{"ttlMs":12,"sentAtBoottimeMs":7}}"#, Command::Renew(order)),
            (r#"{"resume":{"ttlMs":12,"sentAtBoottimeMs":7},"version":1}"#, Command::Resume(order)),
            (r#"{"version":1,"stop-vmm":{}}"#, stop(StopSignal::Term)),
            (r#"{"stop-vmm":{"signal":"kill"},"version":1}"#, stop(StopSignal::Kill)),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn anything_else_is_refused_without_panic() {
        for line in [
            "",
            "{}",
            r#"{"version":1}"#,
            r#"{"status":{}}"#,
            r#"{"version":2,"status":{}}"#,
            r#"{"version":"1","status":{}}"#,
            "[]",
            "null",
            "\"status\"",
            r#"{"version":1,"status":1}"#,
            r#"{"version":1,"renew":{}}"#,
            r#"{"version":1,"renew":{"ttlMs":-1,"sentAtBoottimeMs":0}}"#,
            r#"{"version":1,"renew":{"ttlMs":1.5,"sentAtBoottimeMs":0}}"#,
            r#"{"version":1,"renew":{"ttlMs":1,"sentAtBoottimeMs":0,"x":1}}"#,
            r#"{"version":1,"renew":{"ttlMs":99999999999999999999,"sentAtBoottimeMs":0}}"#,
            r#"{"version":1,"stop-vmm":{"signal":"usr1"}}"#,
            r#"{"version":1,"status":{},"renew":{}}"#,
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let line: Vec<u8> = (0..state % 60)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    br#"{}[]":,0123456789.-enrwstaumklp "#[(state >> 33) as usize % 32]
                })
                .collect();
            state = state.wrapping_add(1);
            let _ = parse(&line);
        }
    }
}
