//! What the machine can do with the same bytes: memcpy, reads and writes of memory files, digests,
//! encryption, and plain copies over a lane without frames or a session.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use novacron_core::CHUNK_PAGES;
use novacron_core::digest::PageHasher;
use novacron_guest_memory::MemoryFile;
use novacron_guest_process::GuestProcess;
use novacron_transport::{Lane, LaneReader, LaneWriter, Link, Listener};

use crate::road::Kind;
use crate::support::PAGE;
use crate::{CHUNK, Figure, Settings};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Plaintext of one record of a TLS lane.
const RECORD: usize = 16 * 1024;

/// The data as a file and as bytes that are mapped and touched.
pub(crate) struct Copies {
    guest: GuestProcess,
    bytes: Vec<u8>,
    target: PathBuf,
}

/// A target file for one measurement.
struct Target(MemoryFile, PathBuf);

impl Target {
    fn make(path: &Path, bytes: u64) -> Self {
        let file: File =
            OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("a file");
        file.set_len(bytes).expect("room");
        Self(MemoryFile::open_target(path, bytes).expect("a target"), path.to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It is made anew for the next measurement.
        let _ = std::fs::remove_file(&self.1);
    }
}

impl Copies {
    pub(crate) fn new(settings: &Settings) -> Self {
        let guest = GuestProcess::start(&settings.directory.join("copied"), settings.data_bytes);
        guest.write_pages(0, settings.data_bytes / PAGE, 3);
        let bytes = guest.contents();
        Self { guest, bytes, target: settings.directory.join("copy") }
    }

    pub(crate) fn measure(&self, mut tell: impl FnMut(&str, Figure)) {
        tell("memcpy", self.memcpy());
        tell("pread", self.file_copy(false, false));
        tell("pread-pwrite", self.file_copy(true, false));
        tell("pread-pwrite-digest", self.file_copy(true, true));
        tell("digest", self.digest());
        let (sealed, opened) = self.seal_and_open();
        tell("aes-256-gcm-seal", sealed);
        tell("aes-256-gcm-open", opened);
        for kind in Kind::ALL {
            let (link, listener) = kind.open();
            for lanes in [1, 2] {
                for digest in [false, true] {
                    let suffix = if digest { "-digest" } else { "" };
                    let part = format!("lane-{}-{lanes}{suffix}", kind.name());
                    tell(&part, self.over_lanes((&*link, &*listener), lanes, digest));
                }
            }
            listener.close();
        }
    }

    fn total(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn source(&self) -> MemoryFile {
        MemoryFile::open_source(self.guest.path(), self.total()).expect("a source")
    }

    fn memcpy(&self) -> Figure {
        let mut to = vec![0_u8; self.bytes.len()];
        // Both are mapped and touched before the clock starts.
        to.copy_from_slice(&self.bytes);
        let began = Instant::now();
        to.copy_from_slice(black_box(&self.bytes));
        black_box(&to);
        Figure::since(began, self.total())
    }

    /// One thread reads the memory file, and writes and hashes where it should.
    fn file_copy(&self, write: bool, digest: bool) -> Figure {
        let source = self.source();
        let target = write.then(|| Target::make(&self.target, self.total()));
        let mut buffer = vec![0_u8; CHUNK as usize];
        let mut sum = 0_u128;
        let began = Instant::now();
        for chunk in 0..self.total() / CHUNK {
            source.read(&mut buffer, chunk * CHUNK).expect("read");
            // As in a move, where the source hashes what it sends and the target what it gets.
            if digest {
                sum = sum.wrapping_add(hash(&buffer, chunk));
            }
            if let Some(Target(file, _)) = &target {
                file.write(&buffer, chunk * CHUNK).expect("written");
            }
            if digest {
                sum = sum.wrapping_sub(hash(&buffer, chunk));
            }
        }
        assert_eq!(black_box(sum), 0);
        Figure::since(began, self.total())
    }

    fn digest(&self) -> Figure {
        let began = Instant::now();
        let chunks = self.bytes.chunks(CHUNK as usize).zip(0..);
        let sum = chunks.fold(0_u128, |sum, (bytes, chunk)| sum.wrapping_add(hash(bytes, chunk)));
        black_box(sum);
        Figure::since(began, self.total())
    }

    /// Records as a TLS lane makes them, without the socket.
    fn seal_and_open(&self) -> (Figure, Figure) {
        let key = || UnboundKey::new(&AES_256_GCM, &[7; 32]).map(LessSafeKey::new).expect("a key");
        let nonce = |number: u64| {
            let mut bytes = [0; NONCE_LEN];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            Nonce::assume_unique_for_key(bytes)
        };
        let (key, mut text) = (key(), self.bytes.clone());
        let mut tags = Vec::with_capacity(text.len() / RECORD);
        let began = Instant::now();
        for (number, record) in (0..).zip(text.chunks_mut(RECORD)) {
            let tag = key.seal_in_place_separate_tag(nonce(number), Aad::empty(), record);
            tags.push(tag.expect("sealed"));
        }
        let sealed = Figure::since(began, self.total());
        let mut plain = vec![0_u8; RECORD];
        let began = Instant::now();
        for (number, (record, tag)) in (0..).zip(text.chunks(RECORD).zip(&tags)) {
            let (aad, room) = (Aad::empty(), &mut plain[..record.len()]);
            key.open_separate_gather(nonce(number), aad, record, tag.as_ref(), room)
                .expect("opened");
        }
        black_box(&plain);
        (sealed, Figure::since(began, self.total()))
    }

    /// Reads, sends, receives and writes: a sender and a receiver for each lane.
    fn over_lanes(
        &self,
        (link, listener): (&dyn Link, &dyn Listener),
        lanes: u64,
        digest: bool,
    ) -> Figure {
        let target = Target::make(&self.target, self.total());
        let source = self.source();
        let open = |index: u64| {
            let near = link.open(&[index as u8], TIMEOUT).expect("a lane");
            (near, listener.accept(TIMEOUT).expect("a lane").lane)
        };
        let ends: Vec<(Lane, Lane)> = (0..lanes).map(open).collect();
        let chunks = self.total() / CHUNK;
        let began = Instant::now();
        thread::scope(|scope| {
            for ((near, far), index) in ends.into_iter().zip(0..) {
                let (source, target) = (&source, &target.0);
                let own = move || (index..chunks).step_by(lanes as usize);
                let (near_kept, far_kept) = (near.reader, far.writer);
                scope.spawn(move || {
                    send(source, near.writer, own(), digest);
                    drop(near_kept);
                });
                scope.spawn(move || {
                    receive(target, far.reader, own(), digest);
                    drop(far_kept);
                });
            }
        });
        Figure::since(began, self.total())
    }
}

fn hash(bytes: &[u8], chunk: u64) -> u128 {
    let first = chunk * CHUNK_PAGES as u64;
    let numbers: [u64; CHUNK_PAGES] = std::array::from_fn(|page| first + page as u64);
    let mut sum = 0_u128;
    PageHasher::new().contributions(bytes, &numbers[..bytes.len() / PAGE as usize], |_, value| {
        sum = sum.wrapping_add(value);
    });
    sum
}

fn send(
    source: &MemoryFile,
    mut writer: LaneWriter,
    chunks: impl Iterator<Item = u64>,
    digest: bool,
) {
    let mut buffer = vec![0_u8; CHUNK as usize];
    for chunk in chunks {
        source.read(&mut buffer, chunk * CHUNK).expect("read");
        if digest {
            black_box(hash(&buffer, chunk));
        }
        writer.write_all(&buffer).expect("sent");
    }
    writer.finish().expect("finished");
}

fn receive(
    target: &MemoryFile,
    mut reader: LaneReader,
    chunks: impl Iterator<Item = u64>,
    digest: bool,
) {
    let mut buffer = vec![0_u8; CHUNK as usize];
    for chunk in chunks {
        reader.read_exact(&mut buffer).expect("received");
        target.write(&buffer, chunk * CHUNK).expect("written");
        if digest {
            black_box(hash(&buffer, chunk));
        }
    }
}
