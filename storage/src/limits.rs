//! Every number that bounds storage, with its unit and its reason.

use std::time::Duration;

/// Longest key of an object of ours, in bytes. S3 allows 1,024; ours are a prefix and a random name.
pub const KEY_MAX: usize = 256;

/// How long one call may take, retries included, before it counts as unavailable. Long enough for a pack of 16 MiB over
/// 5 Mbit/s.
pub const CALL: Duration = millpond_protocol::limits::STORAGE_TIMEOUT;

/// How often a call is tried in all. More would only hold the caller's time-out while storage is away.
pub const ATTEMPTS: u32 = 3;

/// Pause before the second attempt; it is four times as long before the third. Each is shortened by up to half, at
/// random, so that many callers do not come back at once.
pub const BACKOFF: Duration = Duration::from_millis(200);

/// Longest id of a multipart upload, in bytes. They are storage's own; the longest known ones have some 300.
pub const MULTIPART_ID_MAX: usize = 1024;

/// Parts of one object: what S3 allows.
pub const PARTS_MAX: u16 = 10_000;

/// Bytes of each part of an object that is written piece by piece, of which two are in memory at a time. At least the
/// 5 MiB that S3 asks of a part; objects then reach 78 GiB, and larger ones have larger parts.
pub const WRITER_PART: usize = 8 << 20;

/// Bytes of an answer of storage other than an object: a page of 1,000 parts has some 300 KiB.
pub const ANSWER_MAX: usize = 4 << 20;

/// How long connecting to storage may take, so that a second attempt still fits the time of a call.
pub const CONNECT: Duration = Duration::from_secs(10);

/// How long a call to `public_url` may take when it is tried from here: it may be a hole that swallows packets.
pub const PUBLIC: Duration = Duration::from_secs(3);

/// How long the URLs hold that the server signs for itself, for its calls and for such a try: a call is shorter, and clocks
/// may differ as much as S3 allows.
pub const OWN_URL: Duration = Duration::from_secs(15 * 60);

/// How far the clocks of server and storage may differ: S3 allows 15 minutes, and some servers less.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// How long a download may stand still before it is given up.
pub const STALL: Duration = Duration::from_secs(30);

/// The longest life of a presigned URL: SigV4 allows no more.
pub const URL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the client keeps an idle connection. Shorter than [`embedded::IDLE`], or it would send on connections that
/// the server is about to close.
pub const POOL_IDLE: Duration = Duration::from_secs(20);

/// Limits of the embedded server.
pub mod embedded {
    use std::time::Duration;

    /// Largest object of one PUT, in bytes: what S3 allows. Larger ones are multipart.
    pub const OBJECT: u64 = 5 << 30;

    /// Free bytes of the disk that uploads leave alone, so that objects can still be deleted and the ledger, which
    /// mostly lies on the same disk, can still commit.
    pub const MIN_FREE: u64 = 64 << 20;

    /// Connections at once; who comes later waits in the listener's backlog. Each may hold two chunks of [`CHUNK`].
    pub const CONNECTIONS: usize = 1024;

    /// Connections of one address at once, of those: half is left to the others, and behind a proxy or a NAT half is enough
    /// to keep disk and network busy.
    pub const CONNECTIONS_PER_ADDRESS: usize = 512;

    /// Uploads at once; who comes later waits up to [`UPLOAD_WAIT`]. Each may hold two batches of [`CHUNK`]. Of those whose
    /// keys are alike up to their last `/` (one member's) some third at most, up to their second one (a pool's) half.
    pub const UPLOADS: usize = 256;

    /// How long an upload waits for its turn before it is told to slow down.
    pub const UPLOAD_WAIT: Duration = Duration::from_secs(10);

    /// Bytes read from or written to disk in one step. Larger steps gain little and cost memory per connection.
    pub const CHUNK: usize = 256 << 10;

    /// Bytes of one signed chunk of a body in chunks, which is in memory until its signature is compared. Clients send 64 KiB
    /// to 1 MiB; unsigned ones may have any size, for they are cut as they come.
    pub const SIGNED_CHUNK: u64 = 1 << 20;

    /// Bytes of an XML body: 10,000 parts with their tags and checksums are under 3 MiB.
    pub const XML: usize = 4 << 20;

    /// Highest number of a part, and so the most parts of an object: what S3 allows.
    pub const PARTS: u32 = 10_000;

    /// Bytes that every part but the last has at least: what S3 asks for. Smaller ones would make an object of many files.
    pub const MIN_PART: u64 = 5 << 20;

    /// Uploads in parts that have not ended, at once, of keys that are alike up to their last `/`; who comes later is told
    /// to slow down. Each is a row. Millpond's keys begin with the pool, with what the object is and whose, so that the grants
    /// of one member close the way to no other and to nothing that the server itself writes.
    pub const OPEN_UPLOADS: usize = 50_000;

    /// How long after its last part an upload in parts is ended by the server: as long as a URL can live.
    pub const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

    /// How long a completed upload is remembered, in milliseconds, so that a repeat of the request gets its answer.
    pub const REMEMBER_MS: i64 = 7 * 24 * 3_600_000;

    /// Rows of parts of abandoned uploads that one transaction deletes, as many as one upload may have, and of completed
    /// uploads: others wait that long. Objects are removed until so many files are freed.
    pub const EXPIRE: usize = PARTS as usize;

    /// How often abandoned uploads and files without a row are looked for. Each time every directory is read.
    pub const SWEEP: Duration = Duration::from_secs(3600);

    /// Bytes of what a client keeps with an object (`x-amz-meta-…`), names and values: what S3 allows.
    pub const META: usize = 2 << 10;

    /// Bytes of all objects and parts, unless the configuration says less.
    pub const QUOTA: u64 = i64::MAX as u64;

    /// How long a connection may take to send a request's head, and may stay idle between requests.
    pub const IDLE: Duration = Duration::from_secs(30);

    /// How long a body may stand still, in either direction.
    pub const STALL: Duration = Duration::from_secs(30);

    /// Bytes that show that a body is moving: a client that sends fewer within [`STALL`] is given up, so that nobody holds
    /// a place for ever with a byte now and then.
    pub const STALL_BYTES: usize = 4 << 10;

    /// What the bytes of a body must come to in the mean, in bytes a second, once [`CRAWL`] has been spent on waiting for
    /// them, so that a turn is held for a time in proportion to the body (64 MiB for nine hours), where [`STALL_BYTES`] alone would
    /// let it last for days. The slowest links that are used (GPRS) carry 3 KiB/s
    /// or more, and then a part of 5 MiB takes half an hour.
    pub const CRAWL_RATE: u64 = 2 << 10;

    /// How long a body may come more slowly than that.
    pub const CRAWL: Duration = Duration::from_secs(600);

    /// Bodies at once for the key of one PUT: a URL is sent by one client, and again where a connection broke.
    pub const BODIES_OF_PUT: usize = 4;

    /// Bodies at once for one key in parts: tools send up to 10 at a time.
    pub const BODIES_OF_PARTS: usize = 16;

    /// What is read of a refused upload, so that clients which write before they read still see the answer.
    pub const DRAIN_BYTES: u64 = 128 << 20;

    /// How long that may take.
    pub const DRAIN_TIME: Duration = Duration::from_secs(10);

    /// How long requests may go on after the server was told to stop.
    pub const GRACE: Duration = Duration::from_secs(30);

    /// Changes of the catalogue that share one transaction, and so one sync of the disk.
    pub const GROUP: usize = 256;

    /// Changes that wait for the catalogue's writer; who comes later waits to get in.
    pub const QUEUE: usize = 1024;

    /// Reading connections to the catalogue that are kept open.
    pub const READERS: usize = 8;

    /// Keys in one page of a listing: what S3 allows.
    pub const PAGE: usize = 1000;

    /// Longest key in bytes: what S3 allows.
    pub const KEY: usize = 1024;
}
