//! `spool flush --follow`: sends what is spooled as it comes, for as long as it runs.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::{Failure, RETRY};
use super::spool::{Left, done, once, say_damaged};
use super::{Cli, asked_to_end};
use crate::clock::wall_ms;
use crate::spool::Spool;

/// How often to look whether something came.
const LOOK: Duration = Duration::from_millis(500);

/// Sends until it is asked to end. In between the spool is nobody's, so that others may send from it too.
pub(super) async fn follow(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    tokio::select! {
        ended = run(cli, spool) => ended,
        () = asked_to_end() => Ok(()),
    }
}

async fn run(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    let (mut left, mut said) = (Left::default(), None);
    let mut pause = Pause { until: None, is_for_all: false, mark: None };
    loop {
        if wait(spool, &left, &pause).await? {
            left.alone.clear();
        }
        // Whoever opens a spool looks for them; this one is open for months.
        let damaged = spool.mend_notes()?;
        say_damaged(spool, &damaged);
        // Known before the run: what is stated during it is another one.
        let mark = spool.statements_mark();
        let (why, is_for_all) = match once(cli, spool, &mut left).await {
            Ok(summary) => {
                if summary.stored + summary.refused + summary.damaged > 0 {
                    done(cli, &summary)?;
                }
                let why = (summary.left > 0).then(|| "some files did not get through".to_owned());
                (why, spool.entries()?.any(|entry| !left.alone.contains(&entry.upload)))
            }
            Err(failure) if failure.exit == RETRY => (Some(failure.message), true),
            Err(failure) => return Err(failure),
        };
        // As long as that run was ready to wait, or as the server is to be left alone.
        let rest = spool.rest().map_or(Duration::ZERO, |rest| rest.left(wall_ms()));
        let until = why.as_ref().map(|_| Instant::now() + rest.max(cli.spool.patience()).max(LOOK));
        pause = Pause { until, is_for_all, mark };
        // What stands for hours is said once, however many seconds it names.
        let kind = why.as_ref().map(|why| why.replace(|c: char| c.is_ascii_digit(), ""));
        if let Some(why) = why.filter(|_| kind != said) {
            eprintln!("millpond-edge: {why}: it is tried again");
        }
        said = kind;
    }
}

/// What the last run leaves for later.
struct Pause {
    until: Option<Instant>,
    /// Nothing goes before that; else what is new does.
    is_for_all: bool,
    /// The statements that it has seen.
    mark: Option<(u64, i64, i64)>,
}

/// Until something came, or the pause is over; whether it is.
async fn wait(spool: &mut Spool, left: &Left, pause: &Pause) -> Result<bool, Failure> {
    loop {
        if pause.until.is_some_and(|until| until <= Instant::now()) {
            return Ok(true);
        }
        if pause.until.is_none() || !pause.is_for_all {
            // Before they are read: what is stated meanwhile is another one.
            let mark = spool.statements_mark();
            let is_stated = mark != pause.mark && !spool.statements()?.is_empty();
            if is_stated || spool.entries()?.any(|entry| !left.alone.contains(&entry.upload)) {
                return Ok(false);
            }
        }
        sleep(LOOK).await;
    }
}
