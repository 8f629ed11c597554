//! A link of a fixed rate with one deep queue for everything that goes over it, as a home router
//! or a shaped port has it. Only the way from the source is thin.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const PIECE_BYTES: usize = 16 * 1024;

struct Piece {
    to: Arc<TcpStream>,
    /// Empty: nothing follows.
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    longest: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    room: usize,
}

/// Its threads end with the test process.
pub struct ThinLink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl ThinLink {
    pub fn start(to: SocketAddr, bytes_per_second: u64, room: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), room });
        let (accepting, carrying) = (shared.clone(), shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                accept(&client.expect("a lane"), to, &accepting);
            }
        });
        std::thread::spawn(move || carry(&carrying, bytes_per_second));
        Self { address, shared }
    }

    /// Longest queue since the last call.
    pub fn longest_queue(&self) -> usize {
        let mut queue = self.shared.queue.lock().expect("no panic");
        let bytes = queue.bytes;
        std::mem::replace(&mut queue.longest, bytes)
    }
}

fn accept(client: &TcpStream, to: SocketAddr, shared: &Arc<Shared>) {
    let server = Arc::new(TcpStream::connect(to).expect("the target listens"));
    server.set_nodelay(true).expect("an option");
    client.set_nodelay(true).expect("an option");
    let (back, mut client_writer) = (server.clone(), client.try_clone().expect("a copy"));
    std::thread::spawn(move || {
        // A cut lane ends both ways.
        let _ = std::io::copy(&mut &*back, &mut client_writer);
        let _ = client_writer.shutdown(Shutdown::Both);
        let _ = back.shutdown(Shutdown::Both);
    });
    let (mut reader, shared) = (client.try_clone().expect("a copy"), shared.clone());
    std::thread::spawn(move || {
        loop {
            let mut bytes = vec![0; PIECE_BYTES];
            let count = reader.read(&mut bytes).unwrap_or(0);
            bytes.truncate(count);
            let mut queue = shared.queue.lock().expect("no panic");
            while queue.bytes >= shared.room {
                queue = shared.changed.wait(queue).expect("no panic");
            }
            queue.bytes += count;
            queue.longest = queue.longest.max(queue.bytes);
            queue.pieces.push_back(Piece { to: server.clone(), bytes });
            shared.changed.notify_all();
            if count == 0 {
                return;
            }
        }
    });
}

fn carry(shared: &Shared, bytes_per_second: u64) {
    loop {
        let piece = {
            let mut queue = shared.queue.lock().expect("no panic");
            loop {
                if let Some(piece) = queue.pieces.pop_front() {
                    break piece;
                }
                queue = shared.changed.wait(queue).expect("no panic");
            }
        };
        // Never faster than its rate: what a late thread has missed is not made up for.
        let count = piece.bytes.len() as u64;
        std::thread::sleep(Duration::from_nanos(count * 1_000_000_000 / bytes_per_second));
        // A lane that was cut takes nothing more.
        let _ = if count == 0 {
            piece.to.shutdown(Shutdown::Write)
        } else {
            (&*piece.to).write_all(&piece.bytes)
        };
        shared.queue.lock().expect("no panic").bytes -= piece.bytes.len();
        shared.changed.notify_all();
    }
}
