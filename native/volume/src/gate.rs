//! The gate's process: lanes of hosts in, NBD connections to the server beside it out.
//!
//! A raise is durable first, then in force, and answered when every write of a lower epoch was
//! answered by the server, or the server that had it is dead.

use crate::config::{GateConfig, VolumeConfig, credentials, revoked_serials};
use crate::epoch::{EpochFile, NotKept};
use crate::words::{Answer, Request, Wish, say};
use novacron_disk::{GateError, GateOptions, NbdGate, Stream};
use novacron_transport::tls::{Acceptor, AcceptorOptions, Credentials};
use novacron_transport::{Incoming, Lane, LinkError, Listener, PeerIdentity};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long writes in flight may take before a raise is answered `failed`; it is asked again.
const DRAIN_MAX: Duration = Duration::from_secs(8);
/// How often the accepting thread looks up, and the revocation list is read again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

struct Volume {
    config: VolumeConfig,
    epochs: EpochFile,
    gate: NbdGate,
    /// NBD servers that were given writes: while one lives, it may still apply what it has.
    servers: Mutex<BTreeSet<i32>>,
}

/// Serves until the process is ended. Prints a line with msg "ready" once hosts may connect.
pub fn run(config: &GateConfig) -> Result<(), String> {
    let volumes = Arc::new(open_volumes(config)?);
    let papers = credentials(&config.tls).map_err(|error| error.to_string())?;
    let acceptor = Acceptor::bind(config.listen.socket(), &papers, AcceptorOptions::default())
        .map_err(|error| error.to_string())?;
    println!("{{\"level\":\"info\",\"msg\":\"ready\",\"port\":{}}}", acceptor.address().port());
    loop {
        match acceptor.accept(LOOK_EVERY) {
            Ok(incoming) => {
                let volumes = Arc::clone(&volumes);
                // A lane that finds no thread is dropped; its host opens it again.
                let _ = thread::Builder::new()
                    .name("volume-lane".to_owned())
                    .spawn(move || attend(&volumes, incoming));
            }
            Err(LinkError::Deadline) => refresh(config, &papers),
            Err(error) => return Err(error.to_string()),
        }
        for refusal in acceptor.take_refusals() {
            log(&format!("refused {}: {}", refusal.from, refusal.reason));
        }
    }
}

fn open_volumes(config: &GateConfig) -> Result<HashMap<String, Volume>, String> {
    let mut volumes = HashMap::new();
    for one in &config.volumes {
        // The name becomes a file's.
        if PeerIdentity::new("volume", &one.name).is_none() {
            return Err(format!("{:?} is no name of a volume", one.name));
        }
        let path = config.state_dir.join(format!("{}.epoch", one.name));
        let epochs = EpochFile::open(&path).map_err(|error| error.to_string())?;
        let gate = NbdGate::new(epochs.epoch(), GateOptions::VOLUME);
        let servers = Mutex::default();
        let volume = Volume { config: one.clone(), epochs, gate, servers };
        if volumes.insert(one.name.clone(), volume).is_some() {
            return Err(format!("two volumes are called {}", one.name));
        }
    }
    Ok(volumes)
}

/// A list that can't be read leaves the last one in force.
fn refresh(config: &GateConfig, papers: &Credentials) {
    let read = revoked_serials(&config.tls).and_then(|list| papers.revoked().replace(&list));
    if let Err(error) = read {
        log(&format!("the revocation list stays as it was: {error}"));
    }
}

fn attend(volumes: &HashMap<String, Volume>, incoming: Incoming) {
    let Incoming { mut lane, identity, hello } = incoming;
    let Some(request) = Request::decode(&hello) else {
        log(&format!("{identity} says nothing that a gate knows"));
        return lane.control.shutdown();
    };
    let volume = volumes.get(&request.volume).filter(|one| one.config.vm == request.vm);
    let answer = match (volume, request.wish) {
        (None, _) => refused(0, format!("{} of {} is not served here", request.volume, request.vm)),
        (Some(volume), Wish::Look) => Answer::Ok { epoch: volume.epochs.epoch() },
        (Some(volume), Wish::Raise) => volume.raise(request.epoch),
        (Some(volume), Wish::Open | Wish::View) => match volume.connect(&request) {
            Ok(server) => {
                log_request(&identity, &request, "connected");
                let ended = volume.serve(&request, lane, server);
                let how = ended.map_or_else(|error| error.to_string(), |()| "left".to_owned());
                return log_request(&identity, &request, &how);
            }
            Err(answer) => answer,
        },
    };
    if request.wish != Wish::Look || !matches!(answer, Answer::Ok { .. }) {
        log_request(&identity, &request, &format!("{answer:?}"));
    }
    // Who does not wait for the answer asks again.
    let _ = say(&mut lane.writer, &answer).and_then(|()| lane.writer.finish());
}

fn refused(epoch: u64, why: String) -> Answer {
    Answer::Refused { epoch, why }
}

impl Volume {
    fn raise(&self, epoch: u64) -> Answer {
        match self.epochs.raise(epoch) {
            Ok(()) => {}
            Err(NotKept::Lower(kept)) => {
                return refused(kept, format!("epoch {epoch} at a gate of {kept}"));
            }
            Err(NotKept::Io(error)) => {
                let why = format!("the epoch could not be kept: {error}");
                return Answer::Failed { epoch: self.epochs.epoch(), why };
            }
        }
        match self.gate.raise(epoch, DRAIN_MAX) {
            Ok(()) => Answer::Ok { epoch },
            Err(GateError::NotConnected) if self.servers_are_gone() => {
                self.gate.settle_lost();
                Answer::Ok { epoch }
            }
            Err(GateError::Fenced { gate, .. }) => {
                refused(gate, format!("epoch {epoch} at a gate of {gate}"))
            }
            Err(error) => {
                let why = format!("writes of a lower epoch may still come: {error}");
                Answer::Failed { epoch, why }
            }
        }
    }

    /// A server that lost its connection may still apply what it has; a dead one does not.
    fn servers_are_gone(&self) -> bool {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
        servers.is_empty()
    }

    fn connect(&self, request: &Request) -> Result<UnixStream, Answer> {
        let (kept, epoch) = (self.epochs.epoch(), request.epoch);
        if request.wish == Wish::Open && epoch != kept {
            let why = format!("epoch {epoch} at a gate of {kept}");
            // A raise to it may be on its way.
            let is_early = epoch > kept;
            let early = Answer::Failed { epoch: kept, why: why.clone() };
            return Err(if is_early { early } else { refused(kept, why) });
        }
        let connected = UnixStream::connect(&self.config.socket)
            .and_then(|server| Ok((peer_pid(&server)?, server)));
        let (pid, server) = connected.map_err(|error| {
            let why = format!("the NBD server of {}: {error}", self.config.name);
            Answer::Failed { epoch: kept, why }
        })?;
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Ok(server)
    }

    fn serve(
        &self,
        request: &Request,
        mut lane: Lane,
        server: UnixStream,
    ) -> Result<(), GateError> {
        let answer = Answer::Ok { epoch: self.epochs.epoch() };
        say(&mut lane.writer, &answer).map_err(io::Error::from)?;
        let Lane { reader, writer, control } = lane;
        let client = Stream {
            reader: Box::new(reader),
            writer: Box::new(writer),
            cut: Box::new(move || control.shutdown()),
        };
        let server = Stream::from_unix(server)?;
        match request.wish {
            Wish::Open => self.gate.serve(request.epoch, client, server),
            _ => self.gate.serve_reader(client, server),
        }
    }
}

/// Process at the other end of a unix socket.
fn peer_pid(stream: &UnixStream) -> io::Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that live across the call, and the length is theirs.
    let code = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if code == 0 { Ok(peer.pid) } else { Err(io::Error::last_os_error()) }
}

fn log_request(identity: &PeerIdentity, request: &Request, what: &str) {
    let Request { wish, vm, volume, epoch } = request;
    log(&format!("{identity} {wish:?} {vm} {volume} epoch {epoch}: {what}"));
}

fn log(text: &str) {
    eprintln!("{text}");
}
