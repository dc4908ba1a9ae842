//! Who works on rounds, over MQTT: it seals what there is, reads and proves it, and returns a file, however often it is cut off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::answer::{self, Triggered};
use millpond_protocol::message::{Lease, Outcome};
use millpond_protocol::{Code, Refusal, Sha256, limits};
use millpond_tests::{Beside, Credentials, Link, Mill};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};

use super::book::Book;
use super::home::{Client, Here, Home, Wrong};
use super::publishers::content;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(60);

pub struct Grinder {
    pub who: Credentials,
    pub book: Book,
    /// An ask that was not answered, and its id.
    asked: Option<(Op, String)>,
    lease: Option<Lease>,
    /// The result was sent, and may have been committed.
    sent: bool,
}

/// The server's refusal, of an error that is one.
fn refused(error: &anyhow::Error) -> Option<Code> {
    error.downcast_ref::<Refusal>().map(|refusal| refusal.code)
}

impl Grinder {
    pub fn new(who: Credentials, book: Book) -> Self {
        Self { who, book, asked: None, lease: None, sent: false }
    }

    fn id(&mut self) -> String {
        static IDS: AtomicU64 = AtomicU64::new(0);
        format!("g-{}", IDS.fetch_add(1, Ordering::Relaxed))
    }

    /// A round, if there is one to be had: what is open is sealed, else what is on offer is taken.
    async fn round(&mut self, mill: &Mill) -> anyhow::Result<bool> {
        let (op, id) = match &self.asked {
            Some(asked) => asked.clone(),
            None => (Op::Trigger, self.id()),
        };
        // Until it is answered it is asked under the same id: so a round that was granted unheard is not lost.
        self.asked = Some((op, id.clone()));
        let ask = json!({ "id": id, "take": true, "wait_s": 30, "max_answer": limits::ANSWER_MAX });
        if op == Op::Claim {
            let answer: Value = mill.link.ask(op, &ask).await?;
            self.asked = None;
            if answer["round"].is_null() {
                return Ok(false);
            }
            self.lease = Some(serde_json::from_value(answer)?);
            return Ok(true);
        }
        match mill.link.ask::<Triggered>(op, &ask).await {
            Ok(triggered) => {
                // Without a lease that is free it is offered, and claimed.
                (self.lease, self.asked) = (triggered.lease, None);
                Ok(true)
            }
            Err(error) if refused(&error) == Some(Code::NotFound) => {
                self.asked = Some((Op::Claim, self.id()));
                Box::pin(self.round(mill)).await
            }
            Err(error) => Err(error),
        }
    }

    /// The lease as it stands after a cut.
    async fn resume(&mut self, mill: &Mill, lease: Lease) -> anyhow::Result<Lease> {
        let (id, round, attempt) = (self.id(), lease.round, lease.attempt);
        let ask = json!({ "id": id, "round": round, "attempt": attempt, "wait_s": 30, "max_answer": limits::ANSWER_MAX });
        match mill.link.ask(Op::Beat, &ask).await {
            // Its result is committed: all that is left is to be told so.
            Err(error) if self.sent && refused(&error) == Some(Code::Stale) => Ok(lease),
            resumed => resumed,
        }
    }

    /// Reads and proves what the lease is about. What does not match is no crash.
    async fn read(&self, mill: &Mill, lease: &Lease) -> anyhow::Result<()> {
        let leased = match mill.fetch(lease.clone()).await {
            Ok(leased) => leased,
            Err(error) if error.is::<reqwest::Error>() => return Err(error),
            Err(error) => return Err(Wrong(format!("round {}: {error:#}", lease.round)).into()),
        };
        let (pool, sha256) = (self.who.pool.as_str(), lease.manifest_sha256.unwrap());
        self.book.read(pool, lease.round, sha256, &leased.header, &leased.lines);
        Ok(())
    }

    /// Returns the result: small enough to be shown inline, or staged, or by URL.
    async fn answer(&mut self, mill: &Mill, here: &Here, lease: &Lease) -> anyhow::Result<()> {
        let (pool, member) = (self.who.pool.clone(), self.who.member.clone());
        let (round, attempt) = (lease.round, lease.attempt);
        let size = match round % 3 {
            0 => 2_000,
            1 => 200_000,
            _ => 300_000,
        };
        let result = content(&format!("{pool} {round}"), size);
        let sha256 = Sha256::of(&result);
        self.sent = true;
        if round % 3 == 2 {
            let ask = json!({ "id": self.id(), "round": round, "attempt": attempt, "size": size, "sha256": sha256 });
            let put: answer::Put = mill.link.ask(Op::Put, &ask).await?;
            if put.outcome == Outcome::Granted {
                let status = here.api.try_put(&put.to.unwrap(), result).await?;
                anyhow::ensure!(status == 200, "storage refuses a result: {status}");
            }
        } else {
            let topic = format!("mp/{pool}/c/{member}/result/{round}/{attempt}");
            match mill.link.offer(&topic, result, Beside::default()).await? {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {}
                reason => return Err(Wrong(format!("{topic} was refused: {reason:?}")).into()),
            }
            self.book.returned(pool.as_str(), round, sha256);
        }
        let done = json!({ "id": format!("done-{round}-{attempt}"), "round": round, "attempt": attempt,
            "log": "ground", "wait_s": 30 });
        let done: Value = mill.link.ask(Op::Done, &done).await?;
        anyhow::ensure!(done["version"].is_u64(), "round {round} is being verified");
        self.book.returned(pool.as_str(), round, sha256);
        Ok(())
    }
}

impl Client for Grinder {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let mill = Mill::over(Link::open(here.of(&self.who)).await?, here.api.clone());
        if let Some(lease) = self.lease.clone() {
            self.lease = Some(self.resume(&mill, lease).await?);
        }
        loop {
            if let Some(lease) = self.lease.clone() {
                if !self.sent {
                    self.read(&mill, &lease).await?;
                }
                self.answer(&mill, &here, &lease).await?;
                (self.lease, self.sent) = (None, false);
            } else if !self.round(&mill).await? && home.is_last() {
                return Ok(());
            }
            if !home.is_last() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
