//! Tasks that run when the scheduler says so, one poll at a time, on this thread.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// Whose a task is: those of the server end with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Client,
    Server,
}

/// All tasks under way, in order of their beginning.
#[derive(Default)]
pub(super) struct Tasks(Vec<Task>);

struct Task {
    name: String,
    owner: Owner,
    woken: Arc<Woken>,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// Whether somebody wants the task to be polled.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Tasks {
    pub(super) fn spawn(&mut self, owner: Owner, name: String, task: impl Future<Output = ()> + 'static) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.0.push(Task { name, owner, woken, future: Box::pin(task) });
    }

    /// How many can go on.
    pub(super) fn ready(&self) -> usize {
        self.0.iter().filter(|task| task.is_woken()).count()
    }

    /// Lets the n-th of those that can go on do so, and says its name then.
    pub(super) fn run(&mut self, nth: usize, say: impl FnOnce(&str)) {
        let Some(at) = (0..self.0.len()).filter(|at| self.0[*at].is_woken()).nth(nth) else { return };
        let task = &mut self.0[at];
        task.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.woken.clone());
        let is_done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        say(&task.name);
        if is_done {
            drop(self.0.remove(at));
        }
    }

    /// Ends all tasks of the server wherever they are.
    pub(super) fn crash(&mut self) {
        self.0.retain(|task| task.owner == Owner::Client);
    }
}

impl Task {
    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }
}
