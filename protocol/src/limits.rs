//! Every limit of the protocol, with its unit and its reason. Policy or configuration may change those that say so.

use std::time::Duration;

/// Bytes of a file in an `up` or an inline `result` (default of `publish_max`): what one MQTT packet can carry without
/// starving its neighbours on a slow link. Larger files go by presigned reference.
pub const PUBLISH_MAX: usize = 1 << 20;
/// Bytes of a bundle's payload (default of `bundle_max`).
pub const BUNDLE_MAX: usize = 4 << 20;
/// Entries of a bundle: bounds the work of one transaction.
pub const BUNDLE_ENTRIES_MAX: usize = 4_096;
/// Bytes up to which a file is kept in the ledger, packed, and sent inline: measured break-even with files and syncs.
pub const SMALL_MAX: usize = 128 << 10;
/// Bytes of an ask's payload.
pub const ASK_MAX: usize = 256 << 10;
/// Bytes of an answer unless the ask names `max_answer`.
pub const ANSWER_DEFAULT: usize = 16 << 10;
/// Bytes of an answer that an ask may name in `max_answer`.
pub const ANSWER_MAX: usize = 256 << 10;
/// Bytes of a receipt: it must fit small devices' buffers.
pub const RECEIPT_MAX: usize = 512;
/// Bytes of `meta`, of a trigger's `params` and of its `ref`.
pub const META_MAX: usize = 4 << 10;
/// Bytes of a content type.
pub const CONTENT_TYPE_MAX: usize = 255;
/// Bytes of a log in one message.
pub const LOG_MESSAGE_MAX: usize = 64 << 10;
/// Bytes of the log of one round; what comes after is dropped and counted.
pub const LOG_ROUND_MAX: usize = 16 << 20;
/// Bytes of CONNECT, the only packet a stranger can send.
pub const CONNECT_MAX: usize = 16 << 10;
/// Bytes that a packet may be longer than `bundle_max`: topic and properties.
pub const PACKET_OVERHEAD: usize = 64 << 10;
/// Bytes of a PUBLISH that is read past and refused; a longer one ends the connection.
pub const READ_PAST_MAX: usize = 32 << 20;
/// How long a stranger has to send CONNECT.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have not signed in yet.
pub const STRANGERS_MAX: usize = 1_000;
/// The same from one address (an IPv6 network of /64 is one): three others that do their worst still leave a quarter free. A
/// sign-in takes some round trips, so this lets a fleet behind one address in at hundreds a second.
pub const STRANGERS_PER_ADDRESS: usize = 250;
/// Connections that wait for a place among those, for each such place: a fleet of thousands that comes back at once. Half
/// of them for one address.
pub const WAITING_PER_STRANGER: usize = 4;
/// Connections that have signed in: with [`SESSION_QUEUE_BYTES`] and the rest, what SECURITY.md adds up.
pub const CONNECTIONS_MAX: usize = 20_000;
/// The same from one address: a fleet behind a NAT has thousands.
pub const CONNECTIONS_PER_ADDRESS: usize = 10_000;
/// Connections of the HTTP API, strangers and all: each may hold a handshake, a request's head, or an answer.
pub const HTTP_CONNECTIONS: usize = 1_024;
/// The same from one address: a proxy may stand in front of all.
pub const HTTP_CONNECTIONS_PER_ADDRESS: usize = 512;
/// Sign-ins with wrong credentials that one name may have from one address at once, and how fast they are forgiven: a
/// person who mistypes, or a device that was rotated and is about to get its new token.
pub const SIGN_IN_FAILURES_PER_NAME: u32 = 10;
/// How long one such failure counts.
pub const SIGN_IN_NAME_PAUSE: Duration = Duration::from_secs(30);
/// Names that may begin to fail from one address: a fleet may stand behind it.
pub const SIGN_IN_FAILURES_PER_ADDRESS: u32 = 300;
/// How long one such name counts.
pub const SIGN_IN_ADDRESS_PAUSE: Duration = Duration::from_secs(1);
/// Valid tokens of one member, those included that were replaced and hold on for a while.
pub const TOKENS_MAX: u32 = 8;
/// How long replaced tokens may hold on.
pub const TOKEN_OVERLAP_MAX: Duration = Duration::from_secs(30 * 86_400);
/// How long a join token may hold.
pub const JOIN_LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Devices that one join token may be for.
pub const JOIN_USES_MAX: u32 = 100_000;
/// Connections of one member: a device and its restarts, not a fleet behind one credential.
pub const CONNECTIONS_PER_MEMBER: usize = 8;
/// Bytes of packets read but not committed, over all connections; a quarter is for packets that are not long.
pub const UNCOMMITTED_BYTES_MAX: usize = 256 << 20;
/// Messages of one connection that are not committed; then the gate stops reading.
pub const UNCOMMITTED_PER_CONNECTION: usize = 64;
/// Messages to one connection that are not acknowledged (Receive Maximum may lower it).
pub const IN_FLIGHT_OUT: usize = 100;
/// Bytes of messages on app topics that one connection has not acknowledged, from which on it takes no more. What it took at
/// once, up to 1 MiB and a message, may go beyond that.
pub const IN_FLIGHT_BYTES: usize = 4 << 20;
/// Bytes queued to one connection, after which the gate ends it and it must ask again. Asks are refused from a third of it
/// on, so that it holds the answers of all that can be under way by then (16 of `ANSWER_MAX` for a member).
pub const OUT_QUEUE_MAX: usize = 8 << 20;
/// Bytes of the answers that wait for all connections together. A connection may ask while fewer wait for it than half of
/// what is left, so that one that reads its answers can always ask; beyond it those end for which 256 KiB wait.
pub const ANSWERS_WAITING_MAX: usize = 64 << 20;
/// Subscriptions of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 64;
/// User properties of one message: bounds the work that a head of 64 KiB can cause.
pub const USER_PROPERTIES_MAX: usize = 256;
/// Bytes of an app topic or of a filter of app topics: retained messages and sessions keep them.
pub const APP_TOPIC_BYTES: usize = 1_024;
/// Levels of an app topic or of a filter of app topics: each is a step of every match.
pub const APP_TOPIC_LEVELS: usize = 32;
/// Retained messages on app topics that one member may have set. An app topic without one costs nothing.
pub const RETAINED_PER_MEMBER: usize = 100;
/// Retained messages on app topics of one pool.
pub const RETAINED_PER_POOL: usize = 10_000;
/// Bytes of all retained messages of one pool: they are in memory.
pub const RETAINED_BYTES_PER_POOL: usize = 16 << 20;
/// How long a session may outlive its connection (a client may ask for less).
pub const SESSION_EXPIRY_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Sessions of one member, those without a connection too.
pub const SESSIONS_PER_MEMBER: usize = 16;
/// Messages on app topics that wait for one session. One more ends its connection, or is dropped while it has none.
pub const SESSION_QUEUE_MAX: usize = 10_000;
/// Bytes of those messages. Sessions share the bytes of a message that waits for several.
pub const SESSION_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of the messages on app topics that wait for all sessions of a pool that have no connection, each copy counted for
/// itself. What comes beyond that is dropped for them.
pub const AWAY_BYTES_PER_POOL: usize = 256 << 20;
/// The same for the sessions of one member: two of them may be full, and eight members leave nothing to the others.
pub const AWAY_BYTES_PER_MEMBER: usize = 32 << 20;
/// Bytes of all messages on app topics that a pool has in memory, each counted once, whoever holds it: twice what may wait for
/// those who are away. Beyond that the connections that hold most are ended, and QoS 0 is dropped for who has something waiting.
pub const APP_BYTES_PER_POOL: usize = 512 << 20;
/// Topic aliases of one connection in each direction: each keeps a topic.
pub const TOPIC_ALIASES: u16 = 16;
/// Bytes of one pack.
pub const PACK_MAX: u64 = 16 << 20;
/// Bytes of a batch's first packs, which are written when there is as much.
pub const PACK_MIN: u64 = 1 << 20;

/// Bytes that the next pack may have of a batch that is packed as it grows, and of which `packed` bytes are in packs: an
/// eighth of those, within [`PACK_MIN`] and [`PACK_MAX`]. So what is left to be packed when a batch is sealed is a small part of it, whatever its size.
pub fn pack_room(packed: u64) -> u64 {
    (packed / 8).clamp(PACK_MIN, PACK_MAX)
}

/// Bytes that a file of `size` bytes takes in a pack: a tar header, and the file padded to whole blocks of 512.
pub const fn packed(size: u64) -> u64 {
    512 + size.next_multiple_of(512)
}

/// Tolerance for clients' clocks: an event time later than receipt by more becomes the time of receipt.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);
/// Age after which a window or label is closed where the policy sets no deadline (default of `max_age`).
pub const MAX_AGE: Duration = Duration::from_secs(30 * 86_400);
/// Shortest window: the shortest update frequency.
pub const WINDOW_MIN: Duration = Duration::from_secs(60);
/// Longest window.
pub const WINDOW_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Longest `deadline`, `max_age` and `grace` of a policy: a year and a day; longer is an error in writing.
pub const DEADLINE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Uploads that a policy may ask to fill a batch, or at the least: what a manifest can list.
pub const BATCH_COUNT_MAX: u64 = 10_000_000;
/// Longest `lease_term` and `round_max` of a policy: no processor is silent for a month.
pub const LEASE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Rounds of a pool that a policy may let be leased at once.
pub const PARALLEL_ROUNDS_MAX: u32 = 1_000;
/// Longest `spread` of a policy: a result that takes a day to reach its members is late enough.
pub const SPREAD_MAX: Duration = Duration::from_secs(86_400);
/// Open batches of a pool: bounds the core's memory. What would open another is late.
pub const OPEN_BATCHES_MAX: usize = 1_000;
/// Of these, places that only windows from that of now on may take, and labels of members that have opened few: files of
/// another time do not keep today's out, nor one member's labels those of others.
pub const OPEN_BATCHES_OF_NOW: usize = OPEN_BATCHES_MAX / 10;
/// Open batches of labels that are few for a member.
pub const OPEN_LABELS_FEW: usize = OPEN_BATCHES_OF_NOW / 10;
/// How often a batch below its minimum is carried on before it runs all the same.
pub const CARRIES_MAX: u32 = 3;
/// Term of a lease (default of `lease_term`): a two-minute script needs no beats.
pub const LEASE_TERM: Duration = Duration::from_secs(600);
/// How long beats can keep one attempt alive (default of `round_max`).
pub const ROUND_MAX: Duration = Duration::from_secs(86_400);
/// Attempts of a round until an operator offers it again.
pub const ATTEMPTS_MAX: u32 = 3;
/// Pauses before a round is offered again, by failed attempt; the last one repeats.
pub const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// How long an offered round waits for a processor.
pub const UNCLAIMED_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How long packing may take, after which an attempt is spent.
pub const PACKING_MAX: Duration = Duration::from_secs(30 * 60);
/// Longest `wait_s` of an ask, and the ask's own time-out.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long state-changing asks are remembered by (member, op, id).
pub const ASK_MEMORY: Duration = Duration::from_secs(86_400);
/// Answers of one member that are remembered; one more state-changing ask is a `quota`.
pub const ASKS_REMEMBERED: usize = 20_000;
/// One call to storage.
pub const STORAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Validity of a presigned URL.
pub const URL_VALIDITY: Duration = Duration::from_secs(900);
/// Validity of a presigned URL of a result.
pub const RESULT_URL_VALIDITY: Duration = Duration::from_secs(3_600);
/// Bytes of an upload or a result that goes by presigned PUT: what S3 keeps as one object.
pub const UPLOAD_MAX: u64 = 5 << 40;
/// Bytes up to which a file is one PUT; above that it goes in parts, each of which can be resumed by itself.
pub const SINGLE_PUT_MAX: u64 = 64 << 20;
/// Bytes of a part that is not the last one: S3 takes none that is smaller.
pub const PART_MIN: u64 = 5 << 20;
/// Bytes of a part at most, by S3.
pub const PART_MAX: u64 = 5 << 30;
/// Bytes of a part where the client does not choose: what is lost by an interruption, and few enough URLs.
pub const PART_DEFAULT: u64 = 16 << 20;
/// Parts of an object at most, by S3.
pub const PARTS_MAX: u64 = 10_000;
/// URLs for parts in one answer.
pub const PART_URLS_MAX: usize = 100;
/// How long a grant holds from the last `put` that named it (default of `grant_s`): a device's night and day offline.
pub const GRANT: Duration = Duration::from_secs(86_400);
/// How long a grant holds at the most, however often it is renewed, and the most that `grant_s` may be. Storage keeps the
/// parts of an unfinished file for longer: the embedded server for a day more, an external one by its lifecycle rule.
pub const GRANT_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Grants of one member that are not committed yet: each holds storage that nothing counts.
pub const GRANTS_PER_MEMBER: u64 = 1_000;
/// Bytes of all grants of one pool that are not committed yet.
pub const GRANTED_BYTES_PER_POOL: u64 = 10 << 40;
/// Uploads in parts that are hashed after their last part came, at once: each takes a share of disk and processor.
pub const VERIFYING_MAX: usize = 2;
/// The same of results, which the whole pool waits for: they have turns of their own.
pub const VERIFYING_RESULTS_MAX: usize = 1;
/// Receipts kept for replay for each member.
pub const RECEIPTS_KEPT: usize = 10_000;
/// Age of receipts kept for replay.
pub const RECEIPTS_KEPT_FOR: Duration = Duration::from_secs(7 * 86_400);
/// How long uploads, their packs and the manifest's body are kept after their round ended (default of `keep_uploads`): a
/// month to look into what came of it.
pub const KEEP_UPLOADS: Duration = Duration::from_secs(30 * 86_400);
/// Results that are kept whatever their age, the newest ones (default of `keep_results`): enough to roll back.
pub const KEEP_RESULTS: u64 = 10;
/// Results that a policy may keep whatever their age.
pub const KEEP_RESULTS_MAX: u64 = 1_000_000;
/// How long a result is kept after it was last the current one, at the least (and the default of `keep_results_s`): whoever
/// has a pointer to it can fetch it for a day.
pub const KEEP_RESULT_MIN: Duration = Duration::from_secs(86_400);
/// How long the story of a round is kept: attempts, log, deliveries, `round.json` (default of `keep_rounds`).
pub const KEEP_ROUNDS: Duration = Duration::from_secs(90 * 86_400);
/// How long events are kept (default of `keep_events`): whoever resumes a feed within that time misses nothing.
pub const KEEP_EVENTS: Duration = Duration::from_secs(30 * 86_400);
/// Longest time that a policy may keep anything: longer is an error in writing.
pub const KEEP_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);
/// How long an upload's key and hash are kept after its bytes: a repeat within that time is still the same upload.
pub const KEYS_KEPT_FOR: Duration = Duration::from_secs(180 * 86_400);
/// How long the row of a deleted object is kept: a check that finds the object again can say what it was.
pub const GONE_KEPT_FOR: Duration = Duration::from_secs(7 * 86_400);
/// How long the server drains after SIGTERM (default).
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
