//! The listener's and the target's handles.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use novacron_session::{
    DiskEndpoint, Failure, LaneListener, MemoryRecord, TargetOptions, TargetSession, TargetSnapshot,
};
use novacron_transport::tls::{Acceptor, AcceptorOptions};

use crate::check::{
    NativeCheckedMemory, NativePlanted, NativeRepair, exactness, planted,
};
use crate::convert::{
    NativeFailure, NativeTls, closed, credentials, digest_hex, invalid, small, timeout,
    to_error, whole,
};
use crate::promise::promise;
use crate::source::{NativeDigest, format_address};

type Outcome<T> = std::result::Result<T, Failure>;

#[napi(object, use_nullable = true)]
pub struct NativeListenerOptions {
    pub address: String,
    pub port: f64,
    pub tls: NativeTls,
}

#[napi(object, use_nullable = true)]
pub struct NativeDiskEndpoint {
    pub nbd_socket: String,
    pub export_name: String,
}

/// Options of a target; see TargetOptions in runners/data-plane/sessions.ts.
#[napi(object, use_nullable = true)]
pub struct NativeTargetOptions {
    pub migration: String,
    pub epoch: f64,
    pub source_identity: String,
    pub memory_path: String,
    pub memory_bytes: f64,
    pub vmm_pid: f64,
    pub device_state_socket: String,
    pub disks: Vec<NativeDiskEndpoint>,
    pub post_copy_allowed: bool,
    pub balloon: bool,
    pub adopted: bool,
    pub exactness: String,
    pub planted: Option<NativePlanted>,
}

#[napi(object, use_nullable = true)]
pub struct NativeMemoryRecord {
    pub digest: String,
    pub missing_digest: String,
    pub missing_page_count: f64,
    pub io_sequence: Vec<f64>,
}

#[napi(object, use_nullable = true)]
pub struct NativeTargetSnapshot {
    pub state: String,
    pub lanes_connected: f64,
    pub pages_received: f64,
    pub bytes_on_wire: f64,
    pub device_state_bytes: f64,
    pub io_sequence: Vec<f64>,
    pub missing_pages: f64,
    pub post_copy_faults: f64,
    pub disk_digests: Vec<String>,
    pub pages_compared: f64,
    pub failure: Option<NativeFailure>,
}

impl From<MemoryRecord> for NativeMemoryRecord {
    fn from(record: MemoryRecord) -> Self {
        Self {
            digest: digest_hex(record.digest),
            missing_digest: record.missing_digest,
            missing_page_count: record.missing_pages as f64,
            io_sequence: record.io_sequence.into_iter().map(|count| count as f64).collect(),
        }
    }
}

impl From<TargetSnapshot> for NativeTargetSnapshot {
    fn from(look: TargetSnapshot) -> Self {
        Self {
            state: look.state.into(),
            lanes_connected: look.lanes_connected as f64,
            pages_received: look.received_pages as f64,
            bytes_on_wire: look.wire_bytes as f64,
            device_state_bytes: look.device_bytes as f64,
            io_sequence: look.io_sequence.into_iter().map(|count| count as f64).collect(),
            missing_pages: look.missing_pages as f64,
            post_copy_faults: look.faults as f64,
            disk_digests: look.disk_digests.into_iter().map(digest_hex).collect(),
            pages_compared: look.compared_pages as f64,
            failure: look.failure.map(NativeFailure::from),
        }
    }
}

/// A listener for lanes.
#[napi]
pub struct NativeListener {
    listener: Mutex<Option<LaneListener>>,
    port: u16,
}

#[napi]
impl NativeListener {
    #[napi(factory)]
    pub fn open(options: NativeListenerOptions) -> Result<Self> {
        let address = format_address(&options.address, options.port)?;
        let credentials = credentials(&options.tls)?;
        let acceptor = Acceptor::bind(address, &credentials, AcceptorOptions::default())
            .map_err(|error| invalid(&error.to_string()))?;
        let port = acceptor.address().port();
        let listener =
            LaneListener::open(Arc::new(acceptor)).map_err(|failure| to_error(&failure))?;
        Ok(Self { listener: Mutex::new(Some(listener)), port })
    }

    #[napi(getter)]
    pub fn port(&self) -> f64 {
        f64::from(self.port)
    }

    #[napi]
    pub fn expect(&self, options: NativeTargetOptions) -> Result<NativeTarget> {
        self.register(options, LaneListener::expect)
    }

    /// Takes over the post-copy of a runner that died.
    #[napi]
    pub fn resume(&self, options: NativeTargetOptions) -> Result<NativeTarget> {
        self.register(options, LaneListener::resume)
    }

    fn register(
        &self,
        options: NativeTargetOptions,
        open: impl FnOnce(&LaneListener, TargetOptions) -> Outcome<TargetSession>,
    ) -> Result<NativeTarget> {
        let source = options
            .source_identity
            .parse()
            .map_err(|()| invalid("the source's identity is malformed"))?;
        let to_endpoint = |disk: NativeDiskEndpoint| DiskEndpoint {
            nbd_socket: PathBuf::from(disk.nbd_socket),
            export_name: disk.export_name,
        };
        let options = TargetOptions {
            migration: options.migration,
            epoch: whole(options.epoch, "epoch")?,
            source,
            memory_path: PathBuf::from(options.memory_path),
            memory_bytes: whole(options.memory_bytes, "memoryBytes")?,
            vmm_pid: small(options.vmm_pid, "vmmPid")?,
            device_state_socket: PathBuf::from(options.device_state_socket),
            disks: options.disks.into_iter().map(to_endpoint).collect(),
            post_copy_allowed: options.post_copy_allowed,
            balloon: options.balloon,
            adopted: options.adopted,
            exactness: exactness(&options.exactness)?,
            planted: planted(options.planted)?,
        };
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open(listener.as_ref().ok_or_else(closed)?, options);
        let session = session.map_err(|failure| to_error(&failure))?;
        Ok(NativeTarget { session: Mutex::new(Some(Arc::new(session))) })
    }

    /// Repeating it does nothing.
    #[napi]
    pub fn close(&self) {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A target session.
#[napi]
pub struct NativeTarget {
    session: Mutex<Option<Arc<TargetSession>>>,
}

#[napi]
impl NativeTarget {
    fn session(&self) -> Result<Arc<TargetSession>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.clone().ok_or_else(closed)
    }

    #[napi(ts_return_type = "Promise<NativeMemoryRecord>")]
    pub fn wait_memory_in<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeMemoryRecord>(env, |settle| {
            session.memory_in().tell(|answer| settle(answer.map(NativeMemoryRecord::from)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<void>")]
    pub fn flush_disks<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<()>(env, |settle| {
            session.flush_disks(settle);
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

    #[napi(ts_return_type = "Promise<NativeDigest>")]
    pub fn wait_whole<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeDigest>(env, |settle| {
            let to_digest = |digest| NativeDigest { digest: digest_hex(digest) };
            session.whole().tell(move |answer| settle(answer.map(to_digest)));
            Ok(())
        })
    }

    #[napi]
    pub fn begin_check(&self) -> Result<()> {
        self.session()?.begin_check();
        Ok(())
    }

    #[napi(ts_return_type = "Promise<NativeCheckedMemory>")]
    pub fn wait_checked<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeCheckedMemory>(env, |settle| {
            session.checked().tell(|answer| settle(answer.map(NativeCheckedMemory::from)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<NativeRepair>")]
    pub fn repair<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<NativeRepair>(env, |settle| {
            session.repair(|answer| settle(answer.map(NativeRepair::from)));
            Ok(())
        })
    }

    #[napi(ts_return_type = "Promise<void>")]
    pub fn end_check<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let session = self.session()?;
        promise::<()>(env, |settle| {
            session.end_check(settle);
            Ok(())
        })
    }

    #[napi]
    pub fn snapshot(&self) -> Result<NativeTargetSnapshot> {
        Ok(self.session()?.snapshot().into())
    }

    /// Cuts every lane as a broken link would; for tests.
    #[napi]
    pub fn cut_lanes(&self) -> Result<()> {
        self.session()?.cut_lanes();
        Ok(())
    }

    /// Repeating it does nothing.
    #[napi]
    pub fn close(&self) {
        if let Some(session) = self.session.lock().unwrap_or_else(PoisonError::into_inner).take() {
            session.end();
        }
    }
}
