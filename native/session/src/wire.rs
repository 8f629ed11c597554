//! Every lane of a session: their bytes at the socket, and one hand to end them all.

use std::sync::Mutex;

use novacron_transport::LaneControl;

use crate::completion::lock;

#[derive(Default)]
struct State {
    open: Vec<(u64, LaneControl)>,
    closed_bytes: u64,
    next: u64,
    ended: bool,
}

#[derive(Default)]
pub(crate) struct Wire {
    state: Mutex<State>,
}

impl Wire {
    /// Takes a lane into account; ends it at once when the session has ended. Answers its ticket.
    pub(crate) fn add(&self, control: LaneControl) -> u64 {
        let mut state = lock(&self.state);
        if state.ended {
            control.shutdown();
        }
        state.next += 1;
        let ticket = state.next;
        state.open.push((ticket, control));
        ticket
    }

    /// A lane is over; its bytes stay counted.
    pub(crate) fn remove(&self, ticket: u64) {
        let mut state = lock(&self.state);
        if let Some(at) = state.open.iter().position(|(number, _)| *number == ticket) {
            let (_, control) = state.open.swap_remove(at);
            control.shutdown();
            state.closed_bytes += control.wire_bytes_sent() + control.wire_bytes_received();
        }
    }

    /// Ends every lane, also those that are added later.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        for (_, control) in &state.open {
            control.shutdown();
        }
    }

    /// Ends every open lane and lets new ones come: a cut link, for tests.
    pub(crate) fn cut(&self) {
        for (_, control) in &lock(&self.state).open {
            control.shutdown();
        }
    }

    /// Bytes at the sockets in both directions.
    pub(crate) fn bytes(&self) -> u64 {
        let state = lock(&self.state);
        let open = state.open.iter().map(|(_, c)| c.wire_bytes_sent() + c.wire_bytes_received());
        state.closed_bytes + open.sum::<u64>()
    }
}
