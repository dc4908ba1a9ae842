CREATE TABLE object (
    key TEXT NOT NULL PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    parts INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    checksum TEXT,
    meta TEXT,
    modified_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE upload (
    id BLOB NOT NULL PRIMARY KEY,
    key TEXT NOT NULL,
    algorithm TEXT,
    full_object INTEGER NOT NULL,
    meta TEXT,
    started_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX upload_in_order ON upload (key, id);

CREATE TABLE part (
    upload BLOB NOT NULL,
    n INTEGER NOT NULL,
    file BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    checksum BLOB,
    modified_ms INTEGER NOT NULL,
    PRIMARY KEY (upload, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE completed (
    id BLOB NOT NULL PRIMARY KEY,
    key TEXT NOT NULL,
    parts INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    checksum TEXT,
    ended_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX completed_in_time ON completed (ended_ms);
