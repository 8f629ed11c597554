//! An answer that comes once and is told to everybody who asks, before or after.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::failure::Failure;

type Waiter<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// A cell for one answer.
pub struct Answer<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Option<Result<T, Failure>>,
    waiters: Vec<Waiter<T>>,
}

impl<T: Clone> Default for Answer<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { value: None, waiters: Vec::new() }) }
    }
}

impl<T: Clone> Answer<T> {
    /// Calls `waiter` with the answer: now if it is there, else from the thread that gives it.
    pub fn tell(&self, waiter: impl FnOnce(Result<T, Failure>) + Send + 'static) {
        let value = {
            let mut state = self.lock();
            match &state.value {
                Some(value) => value.clone(),
                None => return state.waiters.push(Box::new(waiter)),
            }
        };
        waiter(value);
    }

    /// Gives the answer; later ones are dropped.
    pub(crate) fn give(&self, value: Result<T, Failure>) {
        let waiters = {
            let mut state = self.lock();
            if state.value.is_some() {
                return;
            }
            state.value = Some(value.clone());
            std::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            waiter(value.clone());
        }
    }

    /// The answer if it is there.
    pub fn peek(&self) -> Option<Result<T, Failure>> {
        self.lock().value.clone()
    }

    /// Waits for the answer; for tests and threads of our own.
    pub fn wait(&self) -> Result<T, Failure>
    where
        T: Send + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.tell(move |value| {
            // The receiver is gone only when this thread is.
            let _ = sender.send(value);
        });
        receiver.recv().unwrap_or_else(|_| Err(Failure::cancelled()))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a mutex whose data stays usable when a holder panicked: plain values only.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
