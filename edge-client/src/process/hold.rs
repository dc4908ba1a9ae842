//! How this machine comes to hold a lease, and how that ends.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::message::Lease;
use tokio::time::Instant;

use super::log::Log;
use super::traces::{forget, give_back, note};
use super::{ASK, AttemptError, GIVE_BACK, Job, ProcessError, Processor, REST, Report, Stop, job};

impl Processor<'_> {
    /// Begins to work on a lease. One that cannot be noted is given back: should this process die, nobody would do it.
    pub(super) async fn take(
        &mut self,
        lease: Lease,
        stop: &mut Stop<impl Future<Output = ()> + Unpin>,
    ) -> Result<(), ProcessError> {
        self.clear();
        reach(Point::ProcessLeased);
        (self.report)(Report::Leased(&lease));
        if let Err(error) = note(&self.options.directory, &lease) {
            return self.ended(&lease, &Log::default(), Err(error.into()), ASK, stop).await;
        }
        reach(Point::ProcessNoted);
        let work = job::Work {
            session: self.session.clone(),
            transfer: Arc::clone(self.transfer),
            options: self.options.clone(),
        };
        let (log, is_over) = (Log::default(), Arc::new(AtomicBool::new(false)));
        self.job = Some(Job {
            lease: lease.clone(),
            log: log.clone(),
            is_over: Arc::clone(&is_over),
            work: Box::pin(job::attempt(work, lease, log, is_over)),
        });
        Ok(())
    }

    /// An attempt has ended. What has to be told to the server has so much time, and little where this is to end.
    pub(super) async fn ended(
        &mut self,
        lease: &Lease,
        log: &Log,
        ended: Result<(), AttemptError>,
        within: Duration,
        stop: &mut Stop<impl Future<Output = ()> + Unpin>,
    ) -> Result<(), ProcessError> {
        self.look = Instant::now();
        let (round, directory) = (lease.round, &self.options.directory);
        match &ended {
            Ok(()) => {
                reach(Point::ProcessClosed);
                self.failures = 0;
                // Where it stays, the next process is told that the lease is none any more.
                self.unless_noted(forget(directory));
                (self.report)(Report::Done { round });
            }
            Err(why) => {
                if why.is_of_this_machine() {
                    self.failures = (self.failures + 1).min(6);
                    self.rest = Instant::now() + REST * 2_u32.pow(self.failures - 1);
                } else {
                    self.failures = 0;
                }
                let hurry = async {
                    stop.asked().await;
                    tokio::time::sleep(GIVE_BACK.min(self.options.grace)).await;
                };
                tokio::select! {
                    given = give_back(self.options, self.session, (lease, log), why, within) => self.unless_noted(given),
                    // The note stays: the next process does it.
                    () = hurry => {}
                }
                (self.report)(Report::Ended { round, why });
            }
        }
        self.clear();
        match ended {
            Ok(()) | Err(AttemptError::Stopped) => Ok(()),
            Err(why) => {
                let ended = ProcessError::Ended { round, why: why.to_string() };
                if self.options.once {
                    return Err(ended);
                }
                self.failed.get_or_insert(ended);
                Ok(())
            }
        }
    }
}
