//! One listener a runner: lanes of all incoming moves arrive here and find their session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use novacron_core::frame::Refusal;
use novacron_core::hello::Hello;
use novacron_transport::{Incoming, LinkError, Listener};

use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::source::start;
use crate::target::{self, Shared, TargetOptions, TargetSession, refuse};

/// How often the accepting thread looks up although nobody came.
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// Weak, so that a memory file is let go of with its session and not with the next move.
type Expected = Mutex<HashMap<(String, u64), Weak<Shared>>>;

/// Hands authenticated lanes to the sessions that expect them. Dropping it stops listening.
pub struct LaneListener {
    listener: Arc<dyn Listener>,
    expected: Arc<Expected>,
}

impl LaneListener {
    /// Starts to accept.
    pub fn open(listener: Arc<dyn Listener>) -> Result<Self, Failure> {
        let expected = Arc::new(Expected::default());
        let (accepting, table) = (listener.clone(), expected.clone());
        start("accept", move || accept(accepting.as_ref(), &table))?;
        Ok(Self { listener, expected })
    }

    /// Registers a move; its lanes are taken from now on.
    pub fn expect(&self, options: TargetOptions) -> Result<TargetSession, Failure> {
        self.register(options, TargetSession::open)
    }

    /// Registers a move whose post-copy a mover before this one has left unfinished.
    pub fn resume(&self, options: TargetOptions) -> Result<TargetSession, Failure> {
        self.register(options, TargetSession::resume)
    }

    fn register(
        &self,
        options: TargetOptions,
        open: impl FnOnce(TargetOptions) -> Result<TargetSession, Failure>,
    ) -> Result<TargetSession, Failure> {
        let key = (options.migration.clone(), options.epoch);
        let mut expected = lock(&self.expected);
        expected.retain(|_, shared| shared.upgrade().is_some_and(|shared| !shared.ended()));
        if expected.contains_key(&key) {
            return Err(Failure::new(FailureCode::InputInvalid, "the move is expected already"));
        }
        let session = open(options)?;
        expected.insert(key, Arc::downgrade(session.shared()));
        Ok(session)
    }

    /// Stops accepting; sessions go on.
    pub fn close(&self) {
        self.listener.close();
    }
}

impl Drop for LaneListener {
    fn drop(&mut self) {
        self.close();
    }
}

fn accept(listener: &dyn Listener, expected: &Arc<Expected>) {
    loop {
        match listener.accept(ACCEPT_WAIT) {
            Ok(incoming) => {
                let expected = expected.clone();
                // A lane that finds no thread is dropped; its source opens it again.
                let _ = start("lane", move || take(&expected, incoming));
            }
            Err(LinkError::Closed) => return,
            Err(_) => {}
        }
    }
}

fn take(expected: &Expected, incoming: Incoming) {
    let Some(hello) = Hello::decode(&incoming.hello) else {
        return refuse(incoming.lane, Refusal::Unknown);
    };
    let key = (hello.migration.clone(), hello.epoch);
    let session = lock(expected).get(&key).and_then(Weak::upgrade);
    let fitting = session.filter(|shared| {
        shared.options.source == incoming.identity
            && shared.options.memory_bytes == hello.memory_bytes
            && !shared.ended()
    });
    match fitting {
        Some(shared) => target::take_lane(&shared, &hello, incoming.lane),
        None => refuse(incoming.lane, Refusal::Unknown),
    }
}
