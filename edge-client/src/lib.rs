//! The client of Millpond for devices, for listeners, and for the machine of the external server.
//!
//! **It guarantees**: a file that [`spool::Spool::add`] took is on disk, survives kill -9, power loss and a full disk, and leaves
//! only when the server has said what became of it; it is counted once, however often it is sent. A result is shown only when its
//! size and SHA-256 are the promised ones and it is on disk, and then at one instant. Memory is bounded whatever the size of a
//! file, and no transfer fails while its bytes advance. **It does not guarantee** that files arrive in order; that bytes are never
//! sent twice (it asks before it does, but after a power cut nobody may know); that a command runs only once for a result (at least
//! once); that what a command of `--exec` takes out of its process group ends with it; or anything about files that were never put
//! into a spool.
//!
//! There is no global state. [`session::open`] starts one task of the runtime, which ends with the session; everything else runs
//! where it is called.
//!
//! | module | what |
//! |---|---|
//! | [`session`] | one MQTT connection, kept open: publishes, asks, receipts, state |
//! | [`spool`] | files that wait, in a directory |
//! | [`sender`] | sends a spool: today's first, bundles, receipts |
//! | [`large`], [`transfer`] | files by presigned URL: grants, parts, ranges, hashes |
//! | [`listen`] | the newest result in a directory |
//! | [`process`] | any program as the external processor |
//! | [`enrol`], [`identity`] | a device that becomes a member by itself, and what it keeps of that |
//! | [`clock`] | when something happened, on machines whose clock is wrong |
//!
//! From a file to its receipt, as the examples of the modules do it with a server behind `host` and `port`:
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use millpond_edge::clock::Stamp;
//! use millpond_edge::sender::{self, Options, Report};
//! use millpond_edge::session::{self, Config, Token};
//! use millpond_edge::spool::{About, Limits, Spool};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path().join("spool");
//! let mut spool = Spool::open(&directory, Limits::default())?;
//! let staged = spool.stage(&b"21.5 degrees\n"[..], |_sha256| About {
//!     upload: "reading-1".parse().expect("an id"),
//!     name: "reading.txt".parse().expect("a name"),
//!     event_time: None,
//!     label: None,
//!     content_type: Some("text/plain".to_owned()),
//!     meta: None,
//!     captured: Stamp::now(),
//! })?;
//! spool.add(vec![staged])?;
//!
//! let config = Config::new(host, port, "demo".parse()?, "edge-7".parse()?, Token::new(token));
//! let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
//! if let Some(_sending) = spool.sending()? {
//!     let mut report = |report: Report<'_>| println!("{report:?}");
//!     let done = sender::flush(&mut spool, &session, &mut inbox, &Options::default(), &mut report).await?;
//!     assert_eq!((done.stored, spool.held_now()), (1, (0, 0)));
//! }
//! # Ok(()) }
//! ```

pub mod backoff;
pub mod cli;
pub mod clock;
pub mod enrol;
pub mod exec;
pub mod identity;
pub mod large;
pub mod listen;
pub mod process;
pub mod sender;
pub mod session;
pub mod spool;
pub mod transfer;
mod tree;
