//! The way of one VMM to one volume: a unix socket here, a lane to the gate for each connection.
//!
//! It carries bytes and looks at none. It outlives the runner as its VMM does; a connection that
//! breaks is made again when the VMM asks, which holds its requests meanwhile (reconnect-delay).

use crate::config::{LinkConfig, credentials};
use crate::words::{Answer, Request, Wish, hear};
use novacron_transport::tls::{Connector, SocketOptions};
use novacron_transport::{Lane, LaneReader, LaneWriter, Link, PeerIdentity};
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// One attempt to reach the gate.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// A VMM that asks is held so long while nobody answers; it asks again by itself afterwards.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Said in place of an epoch while the VMM waits for its guest.
const VIEW: &str = "view";
const PIECE_BYTES: usize = 256 * 1024;

/// Serves the VMM until the record of this process is gone.
pub fn run(config: &LinkConfig) -> Result<(), String> {
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    match fs::remove_file(&config.socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.to_string()),
        _ => {}
    }
    let listener = UnixListener::bind(&config.socket).map_err(named("the VMM's socket"))?;
    fs::set_permissions(&config.socket, fs::Permissions::from_mode(0o600))
        .and_then(|()| chown(&config.socket, Some(config.uid), Some(config.uid)))
        .map_err(named("giving the socket to the VMM"))?;
    let record = json!({ "version": 1, "pid": std::process::id(), "startTime": start_time()? });
    let text = format!("{record}\n");
    let fresh = config.record_path.with_extension("fresh");
    fs::write(&fresh, &text)
        .and_then(|()| fs::rename(&fresh, &config.record_path))
        .map_err(named("the record"))?;
    let shared = Arc::new(config.clone());
    let accepting = Arc::clone(&shared);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let config = Arc::clone(&accepting);
            // A VMM that finds no thread is closed on, and asks again.
            let _ = thread::Builder::new().spawn(move || lead(&config, &client));
        }
    });
    while fs::read_to_string(&shared.record_path).is_ok_and(|kept| kept == text) {
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Field 22 of /proc/self/stat: with the pid it names this process and no later one.
fn start_time() -> Result<u64, String> {
    let stat = fs::read_to_string("/proc/self/stat").map_err(|error| error.to_string())?;
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let field = fields.split(' ').nth(19).and_then(|text| text.parse().ok());
    field.ok_or_else(|| "/proc/self/stat has no start time".to_owned())
}

fn lead(config: &LinkConfig, client: &UnixStream) {
    let Some(lane) = reach(config) else { return };
    let Lane { reader, writer, control } = lane;
    let both = || {
        let _ = client.shutdown(Shutdown::Both);
        control.shutdown();
    };
    // Whichever direction ends first ends both: NBD has no half of a connection.
    thread::scope(|scope| {
        scope.spawn(|| {
            inward(reader, client);
            both();
        });
        outward(client, writer);
        both();
    });
}

/// The gate, under the epoch of now; `None` when it refuses or nobody answers in time.
fn reach(config: &LinkConfig) -> Option<Lane> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt(config) {
            Ok(Ok(lane)) => return Some(lane),
            Ok(Err(refusal)) => {
                eprintln!("{}: {refusal:?}", config.volume);
                if matches!(refusal, Answer::Refused { .. }) {
                    return None;
                }
            }
            Err(why) => eprintln!("{}: {why}", config.volume),
        }
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(RETRY_EVERY);
    }
}

fn attempt(config: &LinkConfig) -> Result<Result<Lane, Answer>, String> {
    let said = fs::read_to_string(&config.epoch_path).map_err(|error| error.to_string())?;
    let (wish, epoch) = match said.trim() {
        VIEW => (Wish::View, 0),
        text => (Wish::Open, text.parse().map_err(|_| format!("{said:?} is no epoch"))?),
    };
    let server: PeerIdentity = config.server_identity.parse().map_err(|()| "no identity")?;
    let papers = credentials(&config.tls).map_err(|error| error.to_string())?;
    let to = config.server.socket();
    let connector = Connector::new(to, &papers, &server, SocketOptions::default())
        .map_err(|error| error.to_string())?;
    let (vm, volume) = (config.vm.clone(), config.volume.clone());
    let request = Request { wish, vm, volume, epoch };
    let mut lane =
        connector.open(&request.encode(), ATTEMPT_MAX).map_err(|error| error.to_string())?;
    lane.reader.set_deadline(Some(Instant::now() + ATTEMPT_MAX));
    let answer = hear(&mut lane.reader).map_err(|error| error.to_string())?;
    lane.reader.set_deadline(None);
    Ok(if matches!(answer, Answer::Ok { .. }) { Ok(lane) } else { Err(answer) })
}

fn outward(mut client: &UnixStream, mut writer: LaneWriter) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match client.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                if writer.write_all(&piece[..count]).and_then(|()| writer.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn inward(mut reader: LaneReader, mut client: &UnixStream) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(count) = reader.read(&mut piece) {
        if count == 0 || client.write_all(&piece[..count]).is_err() {
            return;
        }
    }
}
