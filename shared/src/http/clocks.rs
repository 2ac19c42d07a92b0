//! The clocks of one worker's connections: how long a head, an answer or a rest may take.
//!
//! Connections do not set timers. They put down when something began, and a sweep looks at all of them four times a second. So a request
//! costs no timer and no look at the system's clock, and ten thousand connections at rest cost a few microseconds a sweep.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::shutdown::Shutdown;
use prometheus_client::metrics::gauge::Gauge;

/// How exact the clocks are.
const TICK: Duration = Duration::from_millis(250);

/// How long a connection that we have ended may take to take note of it. Then it is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long each part of a conversation may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Between two requests; for HTTP/2, without a request.
    pub keep_alive: Duration,
    /// Without the client taking anything of what waits to be sent.
    pub send: Duration,
}

/// A time of a worker, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

impl Tick {
    fn is_past(self, duration: Duration, now: Self) -> bool {
        // What began within a tick may have begun at its end.
        TICK.saturating_mul(u32::try_from(now.0 - self.0).unwrap_or(u32::MAX)) > duration
    }
}

/// All connections of a worker.
#[derive(Debug)]
pub struct Clocks {
    now: Cell<Tick>,
    deadlines: Deadlines,
    connections: RefCell<HashMap<u64, Rc<ConnectionClock>>>,
    next_id: Cell<u64>,
    is_ending: Cell<bool>,
    /// Requests under way, of all workers.
    active: Gauge,
}

impl Clocks {
    /// Begins to sweep, until the shutdown is asked for and all connections have ended.
    pub fn start(deadlines: Deadlines, active: Gauge, shutdown: Shutdown) -> Rc<Self> {
        let clocks = Rc::new(Self {
            now: Cell::new(Tick(0)),
            deadlines,
            connections: RefCell::default(),
            next_id: Cell::new(0),
            is_ending: Cell::new(false),
            active,
        });
        tokio::task::spawn_local(sweep(Rc::downgrade(&clocks), shutdown));
        clocks
    }

    /// The clock of a new connection.
    pub fn connection(self: &Rc<Self>, protocol: Protocol) -> ConnectionGuard {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let clock = Rc::new(ConnectionClock {
            clocks: Rc::clone(self),
            protocol,
            requests: Cell::new(0),
            has_asked: Cell::new(false),
            quiet_since: Cell::new(self.now.get()),
            // The first head has begun when the connection has.
            head_since: Cell::new(Some(self.now.get())),
            blocked_since: Cell::new(None),
            ended_since: Cell::new(None),
            is_head_refused: Cell::new(false),
            order: Cell::new(self.is_ending.get().then_some(Order::Finish)),
            waker: RefCell::new(None),
            responses: RefCell::default(),
        });
        self.connections.borrow_mut().insert(id, Rc::clone(&clock));
        ConnectionGuard { id, clock }
    }

    fn sweep(&self) {
        let now = Tick(self.now.get().0 + 1);
        self.now.set(now);
        for connection in self.connections.borrow().values() {
            connection.check(now, &self.deadlines);
        }
    }

    fn finish_all(&self) {
        self.is_ending.set(true);
        for connection in self.connections.borrow().values() {
            connection.give(Order::Finish);
        }
    }
}

async fn sweep(clocks: Weak<Clocks>, shutdown: Shutdown) {
    let mut is_ending = false;
    loop {
        if is_ending {
            tokio::time::sleep(TICK).await;
        } else {
            is_ending = !shutdown.sleep(TICK).await;
        }
        let Some(clocks) = clocks.upgrade() else { return };
        if is_ending && !clocks.is_ending.get() {
            clocks.finish_all();
        }
        clocks.sweep();
    }
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// One request after the other.
    Http1,
    /// Many at a time.
    Http2,
}

/// What a connection is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Serve what is under way, then close.
    Finish,
    /// Close at once.
    Close,
}

/// The clock of one connection.
#[derive(Debug)]
pub struct ConnectionClock {
    clocks: Rc<Clocks>,
    protocol: Protocol,
    /// Requests under way: from the end of their head to the end of their answer.
    requests: Cell<u32>,
    /// Whether there was a request.
    has_asked: Cell<bool>,
    /// When the last request ended, or the connection began.
    quiet_since: Cell<Tick>,
    /// When the first byte came that belongs to no request under way.
    head_since: Cell<Option<Tick>>,
    /// Since when something waits to be sent.
    blocked_since: Cell<Option<Tick>>,
    /// Since when the connection is to end.
    ended_since: Cell<Option<Tick>>,
    /// The head of a request did not end.
    is_head_refused: Cell<bool>,
    order: Cell<Option<Order>>,
    /// Of the connection's task.
    waker: RefCell<Option<Waker>>,
    /// HTTP/2's answers under way: each has a window of its own.
    responses: RefCell<Vec<Weak<ResponseClock>>>,
}

impl ConnectionClock {
    fn check(&self, now: Tick, deadlines: &Deadlines) {
        let is_past =
            |since: &Cell<Option<Tick>>, duration| since.get().is_some_and(|since| since.is_past(duration, now));
        if is_past(&self.blocked_since, deadlines.send) || is_past(&self.ended_since, FAREWELL) {
            return self.give(Order::Close);
        }
        if self.requests.get() == 0 && self.ended_since.get().is_none() {
            if self.protocol == Protocol::Http1 && is_past(&self.head_since, deadlines.head) {
                self.ended_since.set(Some(now));
                self.is_head_refused.set(true);
                return self.wake();
            }
            let rest = if self.has_asked.get() { deadlines.keep_alive } else { deadlines.head };
            if self.quiet_since.get().is_past(rest, now) {
                self.ended_since.set(Some(now));
                return self.give(Order::Finish);
            }
        }
        if self.protocol == Protocol::Http2 {
            self.responses.borrow_mut().retain(|response| {
                let Some(response) = response.upgrade() else { return false };
                response.check(now, deadlines);
                true
            });
        }
    }

    fn give(&self, order: Order) {
        self.order.set(Some(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// What the connection is told to do, once; its task is woken for the next time.
    pub fn order(&self, context: &Context<'_>) -> Option<Order> {
        let mut waker = self.waker.borrow_mut();
        match waker.as_mut() {
            Some(waker) => waker.clone_from(context.waker()),
            None => *waker = Some(context.waker().clone()),
        }
        self.order.take()
    }

    /// Whether the request whose head is under way is to be refused.
    pub fn is_head_refused(&self) -> bool {
        self.is_head_refused.get()
    }

    /// Bytes came.
    pub fn received(&self) {
        if self.requests.get() == 0 && self.head_since.get().is_none() {
            self.head_since.set(Some(self.clocks.now.get()));
        }
    }

    /// Not all that is to be sent could be.
    pub fn blocked(&self) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(self.clocks.now.get()));
        }
    }

    /// All that was to be sent is in the hands of the system.
    pub fn sent(&self) {
        self.blocked_since.set(None);
    }

    /// We have said that we send no more.
    pub fn said_farewell(&self) {
        if self.ended_since.get().is_none() {
            self.ended_since.set(Some(self.clocks.now.get()));
        }
    }

    /// The whole head of a request has come.
    pub fn request(self: &Rc<Self>) -> Rc<ResponseClock> {
        self.requests.set(self.requests.get() + 1);
        self.clocks.active.inc();
        self.has_asked.set(true);
        self.head_since.set(None);
        let response = Rc::new(ResponseClock {
            connection: Rc::clone(self),
            waiting_since: Cell::new(None),
            is_overdue: Cell::new(false),
            waker: RefCell::new(None),
        });
        if self.protocol == Protocol::Http2 {
            self.responses.borrow_mut().push(Rc::downgrade(&response));
        }
        response
    }
}

/// Holds a connection's place among those of its worker.
#[derive(Debug)]
pub struct ConnectionGuard {
    id: u64,
    /// The connection's clock.
    pub clock: Rc<ConnectionClock>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.clock.clocks.connections.borrow_mut().remove(&self.id);
    }
}

/// The clock of one request's answer. The request is under way until this is dropped.
#[derive(Debug)]
pub struct ResponseClock {
    connection: Rc<ConnectionClock>,
    /// Since when a piece of the answer waits for the client to take it.
    waiting_since: Cell<Option<Tick>>,
    is_overdue: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ResponseClock {
    /// A piece is handed out; the next one is asked for when the client has room for this one.
    pub fn handed_out(&self) {
        self.waiting_since.set(Some(self.connection.clocks.now.get()));
    }

    /// The next piece is asked for.
    pub fn asked(&self) {
        self.waiting_since.set(None);
    }

    fn check(&self, now: Tick, deadlines: &Deadlines) {
        if self.waiting_since.get().is_some_and(|since| since.is_past(deadlines.send, now)) {
            self.is_overdue.set(true);
            if let Some(waker) = self.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether the client has not taken anything for too long; the task is woken if it comes to that.
    pub fn is_overdue(&self, context: &Context<'_>) -> bool {
        *self.waker.borrow_mut() = Some(context.waker().clone());
        self.is_overdue.get()
    }
}

impl Drop for ResponseClock {
    fn drop(&mut self) {
        self.connection.clocks.active.dec();
        let left = self.connection.requests.get() - 1;
        self.connection.requests.set(left);
        if left == 0 {
            self.connection.quiet_since.set(self.connection.clocks.now.get());
        }
    }
}
