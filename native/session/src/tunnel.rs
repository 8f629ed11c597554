//! The byte tunnel between a unix socket here and one at the peer: device state.
//!
//! A tunnel has its own framing (u32 length, little endian, then bytes; 0 = no more) so that one
//! direction can end while the other goes on, whatever the lane underneath can do.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use novacron_transport::{Lane, LaneControl, LaneReader, LaneWriter};

use crate::failure::{Failure, FailureCode};

/// Longest piece: QEMU writes 32 KiB buffers.
const PIECE_BYTES_MAX: usize = 256 * 1024;
/// How often a waiting tunnel looks whether its session has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What went through a tunnel.
#[derive(Default)]
pub(crate) struct TunnelFigures {
    bytes: AtomicU64,
}

impl TunnelFigures {
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A unix socket of ours; its path goes when it is dropped, unless it is another's by then: the next
/// session of the VM may have made its own there while our thread was still ending.
pub(crate) struct SocketListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket.
    made: Option<(u64, u64)>,
}

fn inode_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|seen| (seen.dev(), seen.ino()))
}

/// Makes a unix socket that only `uid` (or this process) may connect to.
pub(crate) fn listen(path: &Path, uid: Option<u32>) -> Result<SocketListener, Failure> {
    let failed = |what: &str, error: io::Error| {
        Failure::new(FailureCode::InputInvalid, format!("{what} {}: {error}", path.display()))
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("removing the old socket", error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| failed("making the socket", error))?;
    listener.set_nonblocking(true).map_err(|error| failed("setting up the socket", error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| failed("protecting the socket", error))?;
    if let Some(uid) = uid {
        std::os::unix::fs::chown(path, Some(uid), None)
            .map_err(|error| failed("giving away the socket", error))?;
    }
    Ok(SocketListener { listener, path: path.to_owned(), made: inode_at(path) })
}

impl SocketListener {
    /// Waits for a client; `None` once `ended` says so.
    pub(crate) fn accept(&self, ended: impl Fn() -> bool) -> Option<UnixStream> {
        while !ended() {
            if !self.readable(LOOK_EVERY) {
                continue;
            }
            if let Ok((client, _)) = self.listener.accept()
                && client.set_nonblocking(false).is_ok()
            {
                return Some(client);
            }
        }
        None
    }

    fn readable(&self, patience: Duration) -> bool {
        let mut poll =
            libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as i32) > 0 }
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        if self.made.is_some() && inode_at(&self.path) == self.made {
            // It may be gone already, together with its directory.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits for QEMU; `None` when the session ended.
pub(crate) fn wait_for_client(
    listener: &SocketListener,
    _lane: &LaneControl,
    ended: impl Fn() -> bool,
) -> Option<UnixStream> {
    listener.accept(ended)
}

/// Connects to a unix socket that may not be there yet.
pub(crate) fn connect_patiently(
    path: &Path,
    patience: Duration,
    ended: impl Fn() -> bool,
) -> Result<UnixStream, Failure> {
    let began = Instant::now();
    loop {
        let error = match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if ended() || began.elapsed() > patience {
            let detail = format!("connecting to {}: {error}", path.display());
            return Err(Failure::new(FailureCode::EngineFailed, detail));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Relays both directions of a client here until both have ended.
pub(crate) fn relay_source(
    client: UnixStream,
    lane: Lane,
    figures: &TunnelFigures,
) -> Result<(), Failure> {
    relay(client, lane, figures, None)
}

/// Waits for the first piece of a tunnel and answers its length; nothing of it is read yet.
pub(crate) fn first_length(lane: &mut Lane) -> Result<u32, Failure> {
    let mut length = [0; 4];
    lane.reader.read_exact(&mut length)?;
    Ok(u32::from_le_bytes(length))
}

/// The same where the length of the first piece was read before.
pub(crate) fn relay(
    local: UnixStream,
    lane: Lane,
    figures: &TunnelFigures,
    first: Option<u32>,
) -> Result<(), Failure> {
    let lost = |error: io::Error| Failure::new(FailureCode::EngineFailed, error.to_string());
    let (mut outward, mut inward) = (local.try_clone().map_err(lost)?, local.try_clone().map_err(lost)?);
    let Lane { reader, mut writer, control } = lane;
    thread::scope(|scope| {
        let control = &control;
        let down = scope.spawn(move || {
            let ended = pump_in(reader, &mut inward, figures, first);
            if ended.is_err() {
                // Both ways: the other thread must not wait for a socket that nobody serves.
                let _ = inward.shutdown(Shutdown::Both);
                control.shutdown();
            }
            ended
        });
        let up = pump_out(&mut outward, &mut writer, figures);
        if up.is_err() {
            let _ = outward.shutdown(Shutdown::Both);
            control.shutdown();
        }
        let down = down.join().unwrap_or_else(|_| {
            Err(Failure::new(FailureCode::Internal, "a tunnel thread panicked"))
        });
        up.and(down)?;
        // Both directions have ended in their own framing; a goodbye that fails changes nothing.
        let _ = writer.finish();
        Ok(())
    })
}

/// From the socket to the lane, until the socket ends.
fn pump_out(
    socket: &mut UnixStream,
    writer: &mut LaneWriter,
    figures: &TunnelFigures,
) -> Result<(), Failure> {
    let mut buffer = vec![0; 4 + PIECE_BYTES_MAX];
    loop {
        let count = match socket.read(&mut buffer[4..]) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A VMM that dies resets its socket: the peer learns that no more comes.
            Err(_) => 0,
        };
        buffer[..4].copy_from_slice(&(count as u32).to_le_bytes());
        writer.write_all(&buffer[..4 + count])?;
        writer.flush()?;
        figures.add(count);
        if count == 0 {
            return Ok(());
        }
    }
}

/// From the lane to the socket, until the peer's socket ended.
fn pump_in(
    mut reader: LaneReader,
    socket: &mut UnixStream,
    figures: &TunnelFigures,
    mut first: Option<u32>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE_BYTES_MAX];
    loop {
        let length = if let Some(known) = first.take() {
            known
        } else {
            let mut length = [0; 4];
            reader.read_exact(&mut length)?;
            u32::from_le_bytes(length)
        };
        let length = length as usize;
        if length > PIECE_BYTES_MAX {
            return Err(Failure::new(FailureCode::LinkRefused, "a tunnel piece is too long"));
        }
        if length == 0 {
            // The VMM may have closed its side already.
            let _ = socket.shutdown(Shutdown::Write);
            return Ok(());
        }
        reader.read_exact(&mut buffer[..length])?;
        figures.add(length);
        socket.write_all(&buffer[..length]).map_err(|error| {
            Failure::new(FailureCode::EngineFailed, format!("the VMM refused tunnel bytes: {error}"))
        })?;
    }
}
