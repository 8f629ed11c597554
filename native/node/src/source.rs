//! The source's handle.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use novacron_session::{
    ConvergenceAnswer, Failure, FinishMode, FinishedMemory, SourceOptions, SourceSession,
    SourceSnapshot,
};
use novacron_transport::tls::{Connector, SocketOptions};
use novacron_transport::PeerIdentity;

use crate::convert::{
    NativeFailure, NativeTls, closed, credentials, digest_hex, invalid, millis, small, timeout,
    to_error, whole,
};
use crate::check::{NativeChecked, NativePlanted, exactness, planted};
use crate::promise::promise;

/// Options of a source; see SourceOptions in runners/data-plane/sessions.ts.
#[napi(object, use_nullable = true)]
pub struct NativeSourceOptions {
    pub migration: String,
    pub epoch: f64,
    pub address: String,
    pub port: f64,
    pub identity: String,
    pub lane_count: f64,
    pub tls: NativeTls,
    pub memory_path: String,
    pub memory_bytes: f64,
    pub vmm_pid: f64,
    pub device_state_socket: String,
    pub disk_sockets: Vec<String>,
    pub socket_uid: Option<f64>,
    pub bandwidth_bytes_per_second: f64,
    pub downtime_budget_ms: f64,
    pub post_copy: bool,
    pub balloon: bool,
    pub deadline_ms: f64,
    pub exactness: String,
    pub planted: Option<NativePlanted>,
}

#[napi(object, use_nullable = true)]
pub struct NativeDecision {
    pub decision: String,
    pub cause: String,
    pub reason: String,
}

#[napi(object, use_nullable = true)]
pub struct NativeFinishedMemory {
    pub digest: String,
    pub missing_digest: String,
    pub missing_page_count: f64,
    pub io_sequence: Vec<f64>,
    pub last_pass_pages: f64,
    pub scan_ms: f64,
    pub send_ms: f64,
    pub holes_ms: f64,
}

#[napi(object, use_nullable = true)]
pub struct NativeDigest {
    pub digest: String,
}

#[napi(object, use_nullable = true)]
pub struct NativeSourceSnapshot {
    pub state: String,
    pub paused: bool,
    pub round: f64,
    pub bytes_planned: f64,
    pub bytes_done: f64,
    pub bytes_on_wire: f64,
    pub bytes_resent: f64,
    pub pages_sent: f64,
    pub zero_pages: f64,
    pub dirty_bytes_per_second: f64,
    pub send_bytes_per_second: f64,
    pub percent: f64,
    pub eta_ms: Option<f64>,
    pub outlook: String,
    pub bytes_left: f64,
    pub estimated_downtime_ms: Option<f64>,
    pub convergence: String,
    pub lanes_connected: f64,
    pub lane_reconnects: f64,
    pub device_state_bytes: f64,
    pub disk_bytes: f64,
    pub io_sequence: Vec<f64>,
    pub missing_pages: f64,
    pub post_copy_faults: f64,
    pub disk_digests: Vec<String>,
    pub pages_compared: f64,
    pub failure: Option<NativeFailure>,
}

impl From<SourceSnapshot> for NativeSourceSnapshot {
    fn from(look: SourceSnapshot) -> Self {
        Self {
            state: look.state.into(),
            paused: look.paused,
            round: f64::from(look.round),
            bytes_planned: look.planned_bytes as f64,
            bytes_done: look.done_bytes as f64,
            bytes_on_wire: look.wire_bytes as f64,
            bytes_resent: look.resent_bytes as f64,
            pages_sent: look.sent_pages as f64,
            zero_pages: look.zero_pages as f64,
            dirty_bytes_per_second: look.dirty_bytes_per_second.round(),
            send_bytes_per_second: look.send_bytes_per_second.round(),
            percent: look.percent,
            eta_ms: look.eta_ms,
            outlook: look.outlook.into(),
            bytes_left: look.left_bytes as f64,
            estimated_downtime_ms: look.estimated_downtime_ms,
            convergence: look.convergence.into(),
            lanes_connected: look.lanes_connected as f64,
            lane_reconnects: look.lane_reconnects as f64,
            device_state_bytes: look.device_bytes as f64,
            disk_bytes: look.disk_bytes as f64,
            io_sequence: look.io_sequence.into_iter().map(|count| count as f64).collect(),
            missing_pages: look.missing_pages as f64,
            post_copy_faults: look.faults as f64,
            disk_digests: look.disk_digests.into_iter().map(digest_hex).collect(),
            pages_compared: look.compared_pages as f64,
            failure: look.failure.map(NativeFailure::from),
        }
    }
}

impl From<FinishedMemory> for NativeFinishedMemory {
    fn from(record: FinishedMemory) -> Self {
        Self {
            digest: digest_hex(record.digest),
            missing_digest: record.missing_digest,
            missing_page_count: record.missing_pages as f64,
            io_sequence: record.io_sequence.into_iter().map(|count| count as f64).collect(),
            last_pass_pages: record.last_pass_pages as f64,
            scan_ms: record.scan_ms,
            send_ms: record.send_ms,
            holes_ms: record.holes_ms,
        }
    }
}

impl From<ConvergenceAnswer> for NativeDecision {
    fn from(answer: ConvergenceAnswer) -> Self {
        Self {
            decision: answer.decision.name().into(),
            cause: answer.decision.reason().name().into(),
            reason: answer.reason,
        }
    }
}

/// What the ledger keeps of a last pass whose missing pages are still to be served.
#[napi(object, use_nullable = true)]
pub struct NativeFrozenRecord {
    pub digest: String,
    pub missing_digest: String,
    pub missing_page_count: f64,
}

/// A source session.
#[napi]
pub struct NativeSource {
    session: Mutex<Option<Arc<SourceSession>>>,
}

#[napi]
impl NativeSource {
    #[napi(factory)]
    pub fn open(options: NativeSourceOptions) -> Result<Self> {
        Self::hold(SourceSession::open(to_options(options)?))
    }

    /// Takes over the post-copy of a runner that died after the hand-over.
    #[napi(factory)]
    pub fn resume(options: NativeSourceOptions, record: NativeFrozenRecord) -> Result<Self> {
        let digest = u128::from_str_radix(&record.digest, 16)
            .map_err(|_| invalid("the digest of the record is malformed"))?;
        let record = FinishedMemory {
            digest,
            missing_digest: record.missing_digest,
            missing_pages: whole(record.missing_page_count, "missingPageCount")?,
            io_sequence: Vec::new(),
            last_pass_pages: 0,
            scan_ms: 0.0,
            send_ms: 0.0,
            holes_ms: 0.0,
        };
        Self::hold(SourceSession::resume(to_options(options)?, record))
    }

    fn hold(session: std::result::Result<SourceSession, Failure>) -> Result<Self> {
        let session = session.map_err(|failure| to_error(&failure))?;
        Ok(Self { session: Mutex::new(Some(Arc::new(session))) })
    }

    fn session(&self) -> Result<Arc<SourceSession>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.clone().ok_or_else(closed)
    }

    #[napi(ts_return_type = "Promise<void>")]
    pub fn connect<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise(env, |settle| {
            session.connect().tell(settle);
            Ok(())
        })
    }

    #[napi]
    pub fn start_pre_copy(&self) -> Result<()> {
        self.session()?.start_pre_copy().map_err(|failure| to_error(&failure))
    }

    #[napi(ts_return_type = "Promise<NativeDecision>")]
    pub fn wait_converged<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeDecision>(env, |settle| {
            session.converged().tell(|answer| settle(answer.map(NativeDecision::from)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<NativeFinishedMemory>")]
    pub fn finish_memory<'env>(&self, env: &'env Env, post_copy: bool) -> Result<Object<'env>> {
        let session = self.session()?;
        let mode = if post_copy { FinishMode::PostCopy } else { FinishMode::PreCopy };
        promise::<NativeFinishedMemory>(env, |settle| {
            let answer = session.finish_memory(mode).map_err(|failure| to_error(&failure))?;
            answer.tell(|answer| settle(answer.map(NativeFinishedMemory::from)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<NativeDigest>")]
    pub fn serve_post_copy<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeDigest>(env, |settle| {
            let to_digest = |digest| NativeDigest { digest: digest_hex(digest) };
            session.serve_post_copy().tell(move |answer| settle(answer.map(to_digest)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<NativeChecked>")]
    pub fn check_image<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeChecked>(env, |settle| {
            session.check_image().tell(|answer| settle(answer.map(NativeChecked::from)));
            Ok(())
        })
    }

    /// As in sessions.ts.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn raise_disks<'env>(
        &self,
        env: &'env Env,
        epoch: f64,
        timeout_ms: f64,
    ) -> Result<Object<'env>> {
        let session = self.session()?;
        let (epoch, timeout) = (whole(epoch, "epoch")?, timeout(timeout_ms, "timeoutMs")?);
        promise(env, |settle| {
            session.raise_disks(epoch, timeout, settle);
            Ok(())
        })
    }

    #[napi]
    pub fn set_bandwidth(&self, bytes_per_second: f64) -> Result<()> {
        self.session()?.set_bandwidth(whole(bytes_per_second, "bandwidthBytesPerSecond")?);
        Ok(())
    }

    #[napi]
    pub fn set_downtime_budget(&self, budget_ms: f64) -> Result<()> {
        self.session()?.set_downtime_budget(millis(budget_ms, "downtimeBudgetMs")?);
        Ok(())
    }

    #[napi]
    pub fn set_paused(&self, paused: bool) -> Result<()> {
        self.session()?.set_paused(paused);
        Ok(())
    }

    #[napi]
    pub fn post_copy_now(&self) -> Result<()> {
        self.session()?.post_copy_now().map_err(|failure| to_error(&failure))
    }

    #[napi]
    pub fn snapshot(&self) -> Result<NativeSourceSnapshot> {
        Ok(self.session()?.snapshot().into())
    }

    /// Cuts every lane as a broken link would; for tests.
    #[napi]
    pub fn cut_lanes(&self) -> Result<()> {
        self.session()?.cut_lanes();
        Ok(())
    }

    /// Resolves when tracking is off; the handle still answers `snapshot`.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn abort<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<()>(env, |settle| {
            session.end(move || settle(Ok::<(), Failure>(())));
            Ok(())
        })
    }

    /// As abort, and the handle is closed at once. Repeating it resolves.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        promise::<()>(env, |settle| {
            match session {
                Some(session) => session.end(move || settle(Ok(()))),
                None => settle(Ok(())),
            }
            Ok(())
        })
    }
}

fn to_options(options: NativeSourceOptions) -> Result<SourceOptions> {
    let address = format_address(&options.address, options.port)?;
    let identity: PeerIdentity =
        options.identity.parse().map_err(|()| invalid("the target's identity is malformed"))?;
    let credentials = credentials(&options.tls)?;
    let link = Connector::new(address, &credentials, &identity, SocketOptions::default())
        .map_err(|error| invalid(&error.to_string()))?;
    let socket_uid = options.socket_uid.map(|uid| small(uid, "socketUid")).transpose()?;
    Ok(SourceOptions {
        migration: options.migration,
        epoch: whole(options.epoch, "epoch")?,
        link: Arc::new(link),
        lane_count: small(options.lane_count, "laneCount")?,
        memory_path: PathBuf::from(options.memory_path),
        memory_bytes: whole(options.memory_bytes, "memoryBytes")?,
        vmm_pid: small(options.vmm_pid, "vmmPid")?,
        device_state_socket: PathBuf::from(options.device_state_socket),
        disk_sockets: options.disk_sockets.into_iter().map(PathBuf::from).collect(),
        socket_uid,
        bandwidth_bytes_per_second: whole(
            options.bandwidth_bytes_per_second,
            "bandwidthBytesPerSecond",
        )?,
        downtime_budget_ms: millis(options.downtime_budget_ms, "downtimeBudgetMs")?,
        post_copy: options.post_copy,
        balloon: options.balloon,
        deadline_ms: millis(options.deadline_ms, "deadlineMs")?,
        exactness: exactness(&options.exactness)?,
        planted: planted(options.planted)?,
    })
}

pub(crate) fn format_address(address: &str, port: f64) -> Result<SocketAddr> {
    let address = address.parse().map_err(|_| invalid("the address is no IP address"))?;
    Ok(SocketAddr::new(address, small(port, "port")?))
}
