//! A pool with what happens in it before retention, and retention itself.

use std::time::Duration;

use millpond::retention::{Collected, Collector};
use millpond_protocol::access::Op;
use millpond_protocol::{Code, Principal, Role, Timestamp};
use serde_json::{Value, json};

use crate::world::{World, files, window};

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A pool with a publisher and a mill, and what retention does in it.
pub(crate) struct Stage {
    pub world: World,
    pub edge: Principal,
    pub mill: Principal,
    asks: u32,
}

impl Stage {
    /// Uploads are kept for an hour, stories for a day.
    pub async fn new(policy: Value) -> Self {
        let mut whole = json!({ "keep_uploads_s": 3_600, "keep_rounds_s": 86_400, "keep_results": 1 });
        whole.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let mut world = World::new(whole).await;
        let edge = world.member("edge", Role::Publisher).await;
        let mill = world.member("mill", Role::Processor).await;
        world.dispatch();
        Self { world, edge, mill, asks: 0 }
    }

    pub async fn ask(&mut self, op: Op, mut ask: Value) -> Result<Value, Code> {
        self.asks += 1;
        ask["id"] = json!(format!("ask-{}", self.asks));
        let who = match op {
            Op::Get | Op::Status => &self.edge,
            _ => &self.mill,
        };
        self.world.ask(who, op, ask).await
    }

    /// Seals the window and takes the round, ready.
    pub async fn take(&mut self) -> (u64, u32) {
        let ask = json!({ "window": window(), "take": true, "wait_s": 60 });
        let taken = self.ask(Op::Trigger, ask).await.unwrap();
        assert_eq!(taken["lease"]["ready"], true, "{taken}");
        (taken["round"].as_u64().unwrap(), 1)
    }

    /// Some small files and a large one, gathered, ground and returned.
    pub async fn round(&mut self) {
        self.world.upload(&self.edge, files(0..3, 1_000)).await;
        self.world.upload_large(&self.edge, "large", vec![7; 200_000]).await;
        let (round, attempt) = self.take().await;
        self.world.commit(&self.mill, round, attempt, b"flour").await;
        self.settled().await;
    }

    /// Waits until dispatch has nothing left to do.
    pub async fn settled(&self) {
        self.world.until("SELECT count(*) FROM packs WHERE purged = 0", 0).await;
        self.world
            .until("SELECT count(*) FROM rounds WHERE ended IS NOT NULL AND story_object IS NULL", 0)
            .await;
    }

    pub async fn collect(&self, now: Timestamp) -> Collected {
        let collector = Collector::new(self.world.ledger.clone(), self.world.storage.clone());
        let done = collector.collect(now, None, LONG).await.unwrap();
        assert!(!done.more, "{done:?}");
        let sum = "(SELECT coalesce(sum(bytes), 0) FROM batches WHERE retention IN ('kept', 'expiring')) \
            + (SELECT coalesce(sum(size), 0) FROM results WHERE expired IS NULL AND of IS NULL) + (SELECT coalesce(sum(512 \
            + octet_length(coalesce(name, '') || coalesce(content_type, '') || coalesce(meta, ''))), 0) FROM uploads)";
        let counted = "SELECT sum(kept_bytes) FROM pools";
        assert_eq!(self.world.number(counted).await, self.world.number(&format!("SELECT {sum}")).await);
        done
    }

    /// Objects that storage has of those that the ledger ever knew.
    pub async fn stored(&self) -> usize {
        let keys: Vec<String> = self
            .world
            .sql(|sql| sql.prepare("SELECT key FROM objects")?.query_map([], |row| row.get(0))?.collect())
            .await;
        let mut stored = 0;
        for key in keys {
            stored += usize::from(self.world.storage.stat(&key.parse().unwrap()).await.unwrap().is_some());
        }
        stored
    }
}

pub(crate) fn later(by: Duration) -> Timestamp {
    millpond::ledger::now().after(by)
}
