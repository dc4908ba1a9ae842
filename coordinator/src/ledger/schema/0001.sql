-- Ledger, schema 1. Times are milliseconds since 1970 UTC, hashes are 32 bytes, texts are UTF-8.
-- What is a small closed set of words is stored as the word, so that the file explains itself under `sqlite3`.

CREATE TABLE pools (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    policy TEXT NOT NULL,                 -- JSON
    policy_version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    removed INTEGER,                      -- the name is free again, the rows stay
    owner_epoch INTEGER NOT NULL DEFAULT 1, -- who may write; checked by every transaction
    seq INTEGER NOT NULL DEFAULT 0,       -- of uploads and events
    batches INTEGER NOT NULL DEFAULT 0,
    rounds INTEGER NOT NULL DEFAULT 0,
    versions INTEGER NOT NULL DEFAULT 0,
    newest_committed INTEGER NOT NULL DEFAULT 0,
    pointer INTEGER,                      -- the version that the pool's pointer names
    aged_through INTEGER,                 -- windows that end by then stay closed, whatever the deadline is
    kept_bytes INTEGER NOT NULL DEFAULT 0, -- of uploads in batches that are not expired, of results, and of rows of uploads
    granted_bytes INTEGER NOT NULL DEFAULT 0 -- of all its grants
) STRICT;
CREATE UNIQUE INDEX pools_name ON pools (name) WHERE removed IS NULL;
CREATE INDEX pools_every ON pools (name);
CREATE INDEX pools_removed ON pools (removed) WHERE removed IS NOT NULL;

CREATE TABLE members (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created INTEGER NOT NULL,
    revoked INTEGER,
    complete_through INTEGER,             -- "I have nothing more up to"
    receipt_cursor INTEGER,               -- seq up to which receipts are acknowledged; none: never subscribed
    asks INTEGER NOT NULL DEFAULT 0       -- rows of it in `asks`, kept by their triggers
) STRICT;
CREATE UNIQUE INDEX members_name ON members (pool_id, name) WHERE revoked IS NULL;
CREATE INDEX members_every ON members (pool_id, name);

CREATE TABLE tokens (
    hash BLOB PRIMARY KEY,                -- SHA-256 of the token
    member_id INTEGER NOT NULL REFERENCES members (id),
    created INTEGER NOT NULL,
    expires INTEGER,
    ended INTEGER                         -- when its end was noticed, by a clock that may have been wrong
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_member ON tokens (member_id);
CREATE INDEX tokens_expires ON tokens (expires) WHERE expires IS NOT NULL AND ended IS NULL;
CREATE INDEX tokens_ended ON tokens (expires) WHERE ended IS NOT NULL;

-- By which devices become members; deleted some time after they expired.
CREATE TABLE joins (
    hash BLOB PRIMARY KEY,                -- SHA-256 of the join token
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    uses INTEGER NOT NULL,                -- that are left
    expires INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX joins_name ON joins (pool_id, name);
CREATE INDEX joins_expires ON joins (expires);

-- Sessions of MQTT clients that outlive their connections; what waits for them is in memory.
CREATE TABLE sessions (
    member_id INTEGER NOT NULL,
    client_id TEXT NOT NULL,
    expiry INTEGER NOT NULL,              -- how long it is kept without a connection
    since INTEGER,                        -- it has had none since then; none: it has one
    subscriptions TEXT NOT NULL,          -- JSON
    certificates BLOB,                    -- that alone signed it in, in DER, one after the other; none: a token did
    PRIMARY KEY (member_id, client_id)
) STRICT, WITHOUT ROWID;

-- Objects in storage. A row stands before a URL or an object for its key exists, and after both are gone.
CREATE TABLE objects (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('granted', 'live', 'doomed', 'gone')),
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    created INTEGER NOT NULL,
    lived INTEGER NOT NULL DEFAULT 0,     -- 1: it counted once, so no PUT of ours can be on its way to it
    multipart TEXT,                       -- storage's name of the multipart upload that makes it
    url_until INTEGER,                    -- a URL to write it holds until then
    differed INTEGER NOT NULL DEFAULT 0,  -- 1: its grant ended because it was not what was declared
    gone INTEGER                          -- when it was deleted; the row is forgotten some days later
) STRICT;
CREATE INDEX objects_state ON objects (state) WHERE state IN ('granted', 'doomed');
CREATE INDEX objects_gone ON objects (gone) WHERE gone IS NOT NULL;
CREATE INDEX objects_live ON objects (state) WHERE state = 'live'; -- to count them

-- One row an upload: its receipt and its event too, never rewritten. seq = pool id << 40 | the pool's seq, so that
-- one pool's uploads lie together in order of commit.
CREATE TABLE uploads (
    seq INTEGER PRIMARY KEY,
    member_id INTEGER NOT NULL,
    upload TEXT NOT NULL,
    batch_id INTEGER,                     -- that it joined first; follow batches.carried_into. None: rejected
    rule TEXT,                            -- that it was against, if rejected
    why TEXT,                             -- the rule's words to the client
    name TEXT,                            -- none: the upload id
    content_type TEXT,
    label TEXT,                           -- as its member gave it, whatever the pool groups by
    meta TEXT,                            -- JSON
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    event_time INTEGER NOT NULL,
    received INTEGER NOT NULL,
    flags INTEGER NOT NULL,               -- 1 late, 2 clamped
    bundle TEXT,
    object_id INTEGER                     -- of files that are not kept in payloads
) STRICT;
CREATE UNIQUE INDEX uploads_key ON uploads (member_id, upload);
-- An index ends with seq by itself.
CREATE INDEX uploads_member ON uploads (member_id);
CREATE INDEX uploads_batch ON uploads (batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX uploads_large ON uploads (batch_id) WHERE object_id IS NOT NULL;
CREATE INDEX uploads_object ON uploads (object_id) WHERE object_id IS NOT NULL;
CREATE INDEX uploads_rejected ON uploads (seq) WHERE batch_id IS NULL;

-- Files that may come to storage by presigned PUT: each ends as an upload or a result, or as nothing. The row is deleted
-- then.
CREATE TABLE grants (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pool_id INTEGER NOT NULL,
    member_id INTEGER NOT NULL,
    upload TEXT,                          -- what it is to become: an upload, or
    round INTEGER,                        -- the result of this round
    attempt INTEGER,                      -- by this attempt
    name TEXT,
    content_type TEXT,
    meta TEXT,                            -- JSON
    label TEXT,
    event_time INTEGER,
    object_id INTEGER NOT NULL UNIQUE,    -- with size and sha256
    part_size INTEGER,                    -- none: by one PUT
    received INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    verifying INTEGER,                    -- none: open. Grants with the same number are verified now and count together
    verified INTEGER NOT NULL DEFAULT 0,  -- 1: the object in storage has the size and the SHA-256
    problem TEXT,                         -- why the last commit did not count it
    problem_code TEXT                     -- the same as a code for its asker
) STRICT;
CREATE UNIQUE INDEX grants_upload ON grants (member_id, upload) WHERE upload IS NOT NULL;
CREATE UNIQUE INDEX grants_result ON grants (pool_id, round, attempt) WHERE round IS NOT NULL;
CREATE INDEX grants_member ON grants (member_id);
CREATE INDEX grants_pool ON grants (pool_id);
CREATE INDEX grants_expires ON grants (expires) WHERE verifying IS NULL;
CREATE INDEX grants_verifying ON grants (verifying) WHERE verifying IS NOT NULL;

-- Uploads of sealed batches in whose place another one of the same member counts (select = latest, first).
CREATE TABLE superseded (seq INTEGER PRIMARY KEY) STRICT;

-- Bytes of small files, until the pack that holds them is verified.
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;

CREATE TABLE batches (
    id INTEGER PRIMARY KEY,               -- pool id << 40 | number of the batch
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    batch INTEGER NOT NULL,
    record TEXT NOT NULL,                 -- JSON of rounds::Batch as it was opened, carried or sealed
    state TEXT NOT NULL CHECK (state IN ('open', 'carried', 'sealed')),
    label TEXT,
    window_from INTEGER,
    window_to INTEGER,
    deadline INTEGER NOT NULL,
    count INTEGER NOT NULL DEFAULT 0,     -- its own uploads, those carried into it aside
    bytes INTEGER NOT NULL DEFAULT 0,
    small_bytes INTEGER NOT NULL DEFAULT 0, -- what goes into packs, as it counts there: tar headers and padding too
    packed_bytes INTEGER NOT NULL DEFAULT 0, -- of small_bytes
    packed_seq INTEGER NOT NULL DEFAULT 0, -- uploads up to this one are packed
    carried_into INTEGER,                 -- id of the batch that it is part of now
    round INTEGER,                        -- its manifest's seq
    cause TEXT,
    runs INTEGER,                         -- 0: a manifest, no round
    selected TEXT NOT NULL,               -- all, latest, first: the policy's `select` when it opened
    policy_version INTEGER,               -- at the seal
    sealed INTEGER,
    -- What is left of its uploads. Bytes go while it is expiring, rows while it is forgetting. What was carried says the
    -- same as the batch that it is part of.
    retention TEXT NOT NULL DEFAULT 'kept'
        CHECK (retention IN ('kept', 'expiring', 'expired', 'forgetting', 'forgotten')),
    expired INTEGER                       -- since when the bytes are not kept any more
) STRICT;
CREATE INDEX batches_retention ON batches (pool_id, retention, sealed) WHERE carried_into IS NULL;
CREATE INDEX batches_state ON batches (pool_id, state, deadline);
CREATE INDEX batches_window ON batches (pool_id, window_to) WHERE window_to IS NOT NULL;
CREATE INDEX batches_carried ON batches (carried_into) WHERE carried_into IS NOT NULL;
CREATE UNIQUE INDEX batches_round ON batches (pool_id, round) WHERE round IS NOT NULL;
CREATE INDEX batches_label ON batches (pool_id, label) WHERE label IS NOT NULL;

CREATE TABLE batch_members (
    batch_id INTEGER NOT NULL,
    member_id INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0, -- said `complete {label}`
    uploaded INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, member_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_members_member ON batch_members (member_id);

CREATE TABLE packs (
    batch_id INTEGER NOT NULL,
    n INTEGER NOT NULL,                   -- from 1
    object_id INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,            -- the last upload in it; the first one follows the pack before
    files INTEGER NOT NULL,
    purged INTEGER NOT NULL DEFAULT 0,    -- 1: the payloads of its files are deleted
    PRIMARY KEY (batch_id, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX packs_purge ON packs (purged) WHERE purged = 0;
CREATE INDEX packs_object ON packs (object_id);

-- The header of a manifest stays for ever; its body is an object.
CREATE TABLE manifests (
    pool_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    header TEXT NOT NULL,
    object_id INTEGER NOT NULL,
    PRIMARY KEY (pool_id, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifests_object ON manifests (object_id);

CREATE TABLE rounds (
    pool_id INTEGER NOT NULL,
    round INTEGER NOT NULL,
    batch_id INTEGER NOT NULL,
    state TEXT NOT NULL,                  -- sealed, offered, leased, pausing, committed, failed
    record TEXT NOT NULL,                 -- JSON of rounds::Round
    params TEXT,
    ref TEXT,
    log_bytes INTEGER NOT NULL DEFAULT 0, -- of what came; what is over the limit is not in round_logs
    story_object INTEGER,                 -- round.json
    story_rev INTEGER NOT NULL DEFAULT 0, -- grows with everything that it tells
    ended INTEGER,                        -- when it was committed or failed; none while it is live
    retried INTEGER,                      -- when it was last offered again after it had failed
    expired INTEGER,                      -- since when attempts, log, deliveries and round.json are not kept any more
    PRIMARY KEY (pool_id, round)
) STRICT;
CREATE INDEX rounds_ended ON rounds (pool_id, ended) WHERE expired IS NULL AND ended IS NOT NULL;
CREATE INDEX rounds_story ON rounds (story_object) WHERE story_object IS NOT NULL;
CREATE INDEX rounds_state ON rounds (pool_id, state);
CREATE INDEX rounds_live ON rounds (pool_id, state) WHERE state NOT IN ('committed', 'failed');
CREATE INDEX rounds_offered ON rounds (pool_id, round) WHERE state = 'offered';
CREATE INDEX rounds_untold ON rounds (pool_id) WHERE story_object IS NULL AND state IN ('committed', 'failed');

CREATE TABLE attempts (
    pool_id INTEGER NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    member_id INTEGER NOT NULL,
    leased INTEGER NOT NULL,
    beat INTEGER,                         -- the last one
    progress TEXT,                        -- JSON
    ended INTEGER,
    outcome TEXT,                         -- expired, returned, committed, failed
    error TEXT,
    warnings TEXT,                        -- JSON array
    PRIMARY KEY (pool_id, round, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE round_logs (
    pool_id INTEGER NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX round_logs_round ON round_logs (pool_id, round);

CREATE TABLE results (
    pool_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    member_id INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    of INTEGER,                           -- the version that a rollback published again
    name TEXT NOT NULL,
    content_type TEXT,
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    object_id INTEGER NOT NULL,
    data BLOB,                            -- the bytes too, where they are small enough to be sent inline
    committed INTEGER NOT NULL,
    pointed_until INTEGER,                -- when the pool's pointer left it
    expired INTEGER,                      -- since when the bytes are not kept any more
    PRIMARY KEY (pool_id, version)
) STRICT;
CREATE INDEX results_kept ON results (pool_id, version) WHERE expired IS NULL;
CREATE INDEX results_object ON results (object_id);
CREATE INDEX results_round ON results (pool_id, round);

CREATE TABLE deliveries (
    pool_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    member_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    sha256 BLOB,
    reason TEXT,
    at INTEGER NOT NULL,
    PRIMARY KEY (pool_id, version, member_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_member ON deliveries (pool_id, member_id, version);

-- First answers to state-changing asks, for 24 h.
CREATE TABLE asks (
    member_id INTEGER NOT NULL,
    op TEXT NOT NULL,
    ask TEXT NOT NULL,
    at INTEGER NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (member_id, op, ask)
) STRICT, WITHOUT ROWID;
CREATE INDEX asks_at ON asks (at);
CREATE TRIGGER asks_more AFTER INSERT ON asks BEGIN UPDATE members SET asks = asks + 1 WHERE id = new.member_id; END;
CREATE TRIGGER asks_fewer AFTER DELETE ON asks BEGIN UPDATE members SET asks = asks - 1 WHERE id = old.member_id; END;

CREATE TABLE events (
    pool_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,                 -- the pool's, shared with uploads
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,                   -- JSON
    PRIMARY KEY (pool_id, seq)
) STRICT, WITHOUT ROWID;

-- What retention believes of the clock; at most one row.
CREATE TABLE clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    believed INTEGER NOT NULL,            -- the latest time that was
    doubted INTEGER,                      -- what the clock said last, if it is further than it can be;
    ahead_ms INTEGER,                     -- how far it was when the doubt began, and
    ran_ms INTEGER                        -- how long the server has run with it since
) STRICT;

-- One row, written by whoever asks whether the ledger can commit.
CREATE TABLE proof (at INTEGER NOT NULL) STRICT;
INSERT INTO proof VALUES (0);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    pool TEXT,
    who TEXT NOT NULL,
    source TEXT NOT NULL,                 -- address, or `local`
    action TEXT NOT NULL,
    detail TEXT NOT NULL                  -- JSON
) STRICT;
CREATE INDEX audit_pool ON audit (pool, id);
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
