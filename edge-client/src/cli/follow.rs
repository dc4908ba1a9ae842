//! `spool flush --follow`: sends what is spooled as it comes, for as long as it runs.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::{Failure, RETRY};
use super::spool::{done, once};
use super::{Cli, asked_to_end};
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
    let mut said: Option<String> = None;
    loop {
        // Known before the run, so that what comes while it ends is looked at.
        let mark = spool.statements_mark();
        let why = match once(cli, spool).await {
            Ok(summary) => {
                if summary.stored + summary.refused + summary.damaged > 0 {
                    done(cli, &summary)?;
                }
                (summary.left > 0).then(|| format!("{} files did not get through", summary.left))
            }
            Err(failure) if failure.exit == RETRY => Some(failure.message),
            Err(failure) => return Err(failure),
        };
        // As long as the run before it was ready to wait.
        let again = why.as_ref().map(|_| Instant::now() + cli.spool.patience());
        // What stands for hours is said once.
        if let Some(why) = why.as_ref().filter(|why| said.as_ref() != Some(why)) {
            eprintln!("millpond-edge: {why}: it is tried again");
        }
        said = why;
        wait(spool, mark, again).await?;
    }
}

/// Until something came, or it is time to try again what waits.
async fn wait(
    spool: &mut Spool,
    mark: Option<(u64, i64, i64)>,
    again: Option<Instant>,
) -> Result<(), Failure> {
    let (mut read, mut mark) = (spool.readings(), mark);
    loop {
        sleep(LOOK).await;
        let waits = spool.entries()?.next().is_some() || !spool.statements()?.is_empty();
        let now = (spool.readings(), spool.statements_mark());
        let came = now != (read, mark);
        if waits && (came || again.is_some_and(|at| at <= Instant::now())) {
            return Ok(());
        }
        (read, mark) = now;
    }
}
