//! A server that dies again and again, and everybody who works with it.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millpond_failpoint::{Point, Program};
use millpond_protocol::Role;
use millpond_tests::{Credentials, Dice, Edge, Relay, Server, was_killed};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::book::Book;
use super::devices::{Fate, Keeper, Miller, Pusher};
use super::grinder::Grinder;
use super::home::{Client, Here, Home, Now, live};
use super::oracle;
use super::publishers::{ByUrl, Plainly, Publisher};
use super::readers::{Listener, Operator};

/// Until a point must have been passed, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub server: Server,
    pub book: Book,
    /// Storage under one address for all lives of the server, as in a company: URLs outlive it.
    storage: Relay,
    pub edges: Vec<Arc<Edge>>,
    /// Who connects after a restart, to be shown the newest result.
    pub newcomer: Credentials,
    now: watch::Sender<Now>,
    clients: Vec<JoinHandle<AtRest>>,
    /// Those that have nothing left to do.
    at_rest: Vec<AtRest>,
    pub kills: u32,
    /// Of these, those before the last thorough look at everything.
    pub looked: u32,
    /// How often everybody has come to rest.
    pub rests: u32,
}

/// A client between two times of work: it goes on in that world.
type AtRest = Box<dyn FnOnce(&mut World) + Send>;

impl World {
    /// A server with two pools and their members: in `mill` a plain MQTT client processes what is sealed by trigger, in `edge`
    /// `millpond-edge` what a count has sealed, and nothing is kept of what is done. Devices die when the dice say so. `prepare`
    /// sees the server before its first start.
    pub async fn begin(dice: &mut Dice, prepare: impl FnOnce(&mut Server)) -> Self {
        let storage = Relay::to(([127, 0, 0, 1], 9).into()).await;
        let url = format!("http://{}", storage.address());
        let mut server = Server::prepare(&[("MILLPOND__STORAGE__PUBLIC_URL", &url)]);
        prepare(&mut server);
        server.launch().await;
        storage.mend(server.ports().storage.unwrap());
        server.pool("mill", json!({ "grouping": "count", "count": 100_000, "spread_s": 0 })).await;
        let edge = json!({ "grouping": "count", "count": 6, "spread_s": 0, "keep_uploads_s": 0, "parallel_rounds": 4,
            "lease_term_s": 15 });
        server.pool("edge", edge).await;

        let book = Book::default();
        let (now, _) = watch::channel(Now::default());
        let (edges, clients, at_rest) = (Vec::new(), Vec::new(), Vec::new());
        let newcomer = server.member("mill", "newcomer", Role::Listener).await;
        let mut world = Self {
            server,
            book,
            storage,
            edges,
            newcomer,
            now,
            clients,
            at_rest,
            kills: 0,
            looked: 0,
            rests: 0,
        };
        for number in 0..2 {
            let who = world.server.member("mill", &format!("five-{number}"), Role::Publisher).await;
            world.spawn(Publisher { who, book: world.book.clone(), next: 0 });
        }
        let who = world.server.member("mill", "three", Role::Publisher).await;
        world.spawn(Plainly { who, book: world.book.clone(), next: 0 });
        for (pool, name, parts) in [("mill", "large", false), ("edge", "parts", true)] {
            let who = world.server.member(pool, name, Role::Publisher).await;
            world.spawn(ByUrl { who, book: world.book.clone(), next: 0, parts });
        }
        let who = world.server.member("mill", "mill", Role::Processor).await;
        world.spawn(Grinder::new(who, world.book.clone()));
        let who = world.server.member("mill", "listener", Role::Listener).await;
        world.spawn(Listener { who, book: world.book.clone(), version: 0 });
        world.spawn(Operator);

        let who = world.server.member("edge", "pusher", Role::Publisher).await;
        let edge = world.edge(who.clone()).await;
        let fate = |program, dice: &mut Dice, book: &Book| Fate::new(program, dice.child(), book.clone());
        let own = fate(Program::Push, dice, &world.book);
        world.spawn(Pusher { edge, who, book: world.book.clone(), next: 0, fate: own });
        let who = world.server.member("edge", "keeper", Role::Listener).await;
        let edge = world.edge(who).await;
        let own = fate(Program::Listen, dice, &world.book);
        world.spawn(Keeper { edge, fate: own });
        let who = world.server.member("edge", "miller", Role::Processor).await;
        let edge = world.edge(who).await;
        let own = fate(Program::Process, dice, &world.book);
        world.spawn(Miller { edge, fate: own });
        world.open();
        world
    }

    async fn edge(&mut self, who: Credentials) -> Arc<Edge> {
        let edge = Arc::new(Edge::new(&self.server, who).await);
        self.edges.push(Arc::clone(&edge));
        edge
    }

    pub fn home(&self) -> Home {
        Home::new(self.now.subscribe())
    }

    fn spawn(&mut self, client: impl Client) {
        let lived = live(client, self.home());
        self.clients.push(tokio::spawn(async move {
            let client = lived.await;
            Box::new(move |world: &mut Self| world.spawn(client)) as AtRest
        }));
    }

    pub fn here(&self) -> Here {
        Here { mqtt: self.server.mqtt(), api: self.server.api() }
    }

    /// Everybody finds the server.
    fn open(&self) {
        self.storage.mend(self.server.ports().storage.unwrap());
        self.edges.iter().for_each(|edge| edge.relay.mend(self.server.mqtt()));
        let here = self.here();
        self.now.send_modify(|now| now.server = Some(here));
    }

    /// It is gone.
    fn shut(&mut self) {
        self.now.send_modify(|now| now.server = None);
        self.edges.iter().for_each(|edge| edge.relay.cut());
        self.storage.cut();
        self.kills += 1;
        self.well();
    }

    /// Nobody has met what no crash explains.
    fn well(&self) {
        assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed: see above");
    }

    /// Starts the server again.
    pub async fn rise(&mut self) {
        self.server.disarm();
        self.server.launch().await;
        self.open();
    }

    /// The server dies at that point while everybody works; it has to come there.
    pub async fn die_at(&mut self, point: Point) {
        self.server.arm(point, 1);
        let status = self.server.died(PATIENCE).await;
        let status = status.unwrap_or_else(|| panic!("{} is never reached", point.name()));
        assert!(was_killed(status), "{}: the server ended with {status}", point.name());
        self.shut();
    }

    /// The server dies at that point, if it comes there soon.
    pub async fn die_near(&mut self, point: Point, nth: u32, within: Duration) {
        self.server.arm(point, nth);
        self.die_within(within).await;
    }

    /// The server dies by itself, or when that time is over.
    pub async fn die_within(&mut self, time: Duration) {
        match self.server.died(time).await {
            Some(status) => assert!(was_killed(status), "the server ended with {status}"),
            None => self.server.kill(),
        }
        self.shut();
    }

    /// The server dies after a while.
    pub async fn die_after(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        self.server.kill();
        self.shut();
    }

    /// The server, which is gone, starts, unless it dies by itself on the way; whether it has.
    pub async fn rises_or_dies(&mut self) -> bool {
        self.server.disarm();
        match self.server.try_launch().await {
            Ok(()) => {
                self.open();
                true
            }
            Err(status) => {
                assert!(was_killed(status), "the server ended with {status}");
                self.kills += 1;
                false
            }
        }
    }

    /// The server, which is gone, starts and dies on the way at that point.
    pub async fn die_starting(&mut self, point: Point) {
        self.server.arm(point, 1);
        let Err(status) = self.server.try_launch().await else { panic!("{} is never reached", point.name()) };
        assert!(was_killed(status), "{}: the server ended with {status}", point.name());
        self.kills += 1;
    }

    /// Everybody comes to an end; what was sealed is ground, and the rest too.
    pub async fn rest(&mut self) {
        self.now.send_modify(|now| now.last = true);
        for client in std::mem::take(&mut self.clients) {
            let ended = tokio::time::timeout(PATIENCE, client).await.expect("a client does not end");
            self.at_rest.push(ended.unwrap());
        }
        self.rests += 1;
        for pool in ["mill", "edge"] {
            let who = self.server.member(pool, &format!("last-{}", self.rests), Role::Processor).await;
            // What was given back just now is on offer again after a pause, and later after a longer one.
            let ended = async {
                while !self.ground(pool, &who).await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, ended).await.is_err() {
                let mut rounds = oracle::rounds(&self.here(), pool).await;
                rounds.retain(|(_, state)| state != "committed");
                panic!("rounds of {pool} do not end: {rounds:?}");
            }
        }
    }

    /// Everybody works again.
    pub fn go_on(&mut self) {
        self.now.send_modify(|now| now.last = false);
        self.open();
        std::mem::take(&mut self.at_rest).into_iter().for_each(|client| client(self));
    }

    /// Grinds what there is to grind now; whether every round has ended.
    async fn ground(&self, pool: &str, who: &Credentials) -> bool {
        live(Grinder::new(who.clone(), self.book.clone()), self.home()).await;
        let rounds = oracle::rounds(&self.here(), pool).await;
        // Where the server died over three processors in a row, the round has failed.
        let ended = |state: &str| state == "committed" || (pool == "edge" && state == "failed");
        rounds.iter().all(|(_, state)| ended(state))
    }

    /// The command line against the server.
    pub fn cli(&self) -> Command {
        self.server.cli()
    }
}
