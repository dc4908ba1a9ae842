//! Rules that rows keep among each other: each is a query that finds nothing in a ledger that is whole. It answers what a
//! row is about, and what is wrong with it. One statement sees one state of the ledger, whatever is written meanwhile.

/// The word of a rule, and its query.
pub(crate) const RULES: [(&str, &str); 32] = [
    (
        "pool-batches",
        "SELECT name, 'its newest batch is ' || n || ' and it counts ' || batches FROM (SELECT *, \
         (SELECT coalesce(max(batch), 0) FROM batches b WHERE b.pool_id = p.id) AS n FROM pools p) WHERE n <> batches",
    ),
    (
        "pool-rounds",
        "SELECT name, 'its newest round is ' || n || ' and it counts ' || rounds FROM (SELECT *, \
         (SELECT coalesce(max(round), 0) FROM batches b WHERE b.pool_id = p.id) AS n FROM pools p) WHERE n <> rounds",
    ),
    (
        "pool-versions",
        "SELECT name, 'its newest version is ' || n || ' and it counts ' || versions FROM (SELECT *, \
         (SELECT coalesce(max(version), 0) FROM results r WHERE r.pool_id = p.id) AS n FROM pools p) WHERE n <> versions",
    ),
    (
        "pool-committed",
        "SELECT name, 'its newest committed round is ' || n || ' and it says ' || newest_committed FROM (SELECT *, \
         (SELECT coalesce(max(round), 0) FROM rounds r WHERE r.pool_id = p.id AND r.state = 'committed') AS n \
         FROM pools p) WHERE n <> newest_committed",
    ),
    (
        "pool-pointer",
        "SELECT name, 'its pointer names ' || coalesce('version ' || pointer, 'nothing') || ', which is no result that is kept' \
         FROM pools p WHERE removed IS NULL AND (pointer IS NOT NULL OR versions > 0) AND NOT EXISTS \
         (SELECT 1 FROM results r WHERE r.pool_id = p.id AND r.version = p.pointer AND r.expired IS NULL)",
    ),
    (
        "pool-seq",
        "SELECT name, 'its newest upload or event is ' || n || ' and it counts ' || seq FROM (SELECT *, max( \
         coalesce((SELECT max(seq) FROM events e WHERE e.pool_id = p.id), 0), \
         coalesce((SELECT max(u.seq) & 1099511627775 FROM uploads u WHERE u.seq > p.id << 40 AND u.seq < (p.id + 1) << 40), 0)) \
         AS n FROM pools p) WHERE n > seq",
    ),
    (
        "pool-kept",
        "SELECT name, n || ' bytes are kept and it counts ' || kept_bytes FROM (SELECT *, \
         (SELECT coalesce(sum(bytes), 0) FROM batches b WHERE b.pool_id = p.id AND b.retention IN ('kept', 'expiring')) \
         + (SELECT coalesce(sum(size), 0) FROM results r WHERE r.pool_id = p.id AND r.expired IS NULL AND r.of IS NULL) \
         + (SELECT coalesce(sum(512 + coalesce(octet_length(name), 0) + coalesce(octet_length(content_type), 0) \
         + coalesce(octet_length(meta), 0)), 0) FROM uploads u WHERE u.seq > p.id << 40 AND u.seq < (p.id + 1) << 40) AS n \
         FROM pools p) WHERE n <> kept_bytes",
    ),
    (
        "pool-grants",
        "SELECT name, n || ' bytes are granted and it counts ' || granted_bytes FROM (SELECT *, (SELECT coalesce(sum(o.size), 0) \
         FROM grants g JOIN objects o ON o.id = g.object_id WHERE g.pool_id = p.id) AS n FROM pools p) WHERE n <> granted_bytes",
    ),
    (
        "member-asks",
        "SELECT p.name || '/' || m.name, n || ' asks are remembered and it counts ' || asks FROM (SELECT *, \
         (SELECT count(*) FROM asks a WHERE a.member_id = m.id) AS n FROM members m) m JOIN pools p ON p.id = m.pool_id \
         WHERE n <> m.asks",
    ),
    (
        "batch-uploads",
        "SELECT name || ' batch ' || batch, 'it counts ' || count || ' uploads of ' || bytes || ' bytes, and has ' || n || \
         ' of ' || s FROM (SELECT p.name, b.batch, b.count, b.bytes, \
         (SELECT count(*) FROM uploads u WHERE u.batch_id = b.id) AS n, \
         (SELECT coalesce(sum(size), 0) FROM uploads u WHERE u.batch_id = b.id) AS s \
         FROM batches b JOIN pools p ON p.id = b.pool_id WHERE b.retention IN ('kept', 'expiring', 'expired')) \
         WHERE n <> count OR s <> bytes",
    ),
    (
        "batch-carried",
        "SELECT p.name || ' batch ' || b.batch, 'it is ' || b.state || ' and carried into ' || coalesce('row ' || b.carried_into, \
         'nothing') FROM batches b JOIN pools p ON p.id = b.pool_id LEFT JOIN batches t ON t.id = b.carried_into \
         WHERE (b.state = 'carried') <> (b.carried_into IS NOT NULL) \
         OR (b.carried_into IS NOT NULL AND (t.pool_id IS NOT b.pool_id OR t.carried_into IS NOT NULL))",
    ),
    (
        "batch-sealed",
        "SELECT p.name || ' batch ' || b.batch, 'it is ' || b.state || ', and its round, time and cause do not say so' \
         FROM batches b JOIN pools p ON p.id = b.pool_id WHERE (b.state = 'sealed') <> (b.round IS NOT NULL) \
         OR (b.state = 'sealed' AND (b.sealed IS NULL OR b.cause IS NULL OR b.runs IS NULL))",
    ),
    (
        "batch-round",
        "SELECT p.name || ' batch ' || b.batch, 'it ' || iif(b.runs, 'has no round ', 'was skipped and has round ') || b.round \
         FROM batches b JOIN pools p ON p.id = b.pool_id WHERE b.state = 'sealed' AND b.runs <> EXISTS \
         (SELECT 1 FROM rounds r WHERE r.pool_id = b.pool_id AND r.round = b.round AND r.batch_id = b.id)",
    ),
    (
        "batch-retention",
        "SELECT p.name || ' batch ' || b.batch, 'it is ' || b.retention || ' since ' || coalesce(b.expired, 'never') \
         FROM batches b JOIN pools p ON p.id = b.pool_id WHERE (b.retention = 'kept') <> (b.expired IS NULL)",
    ),
    (
        "round-batch",
        "SELECT p.name || ' round ' || r.round, 'no batch was sealed as it' FROM rounds r JOIN pools p ON p.id = r.pool_id \
         WHERE NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = r.batch_id AND b.round = r.round AND b.pool_id = r.pool_id)",
    ),
    (
        "round-record",
        "SELECT p.name || ' round ' || r.round, 'its row says ' || r.state || ', its record ' || \
         coalesce(json_extract(r.record, '$.state.is'), 'nothing') FROM rounds r JOIN pools p ON p.id = r.pool_id \
         WHERE json_extract(r.record, '$.state.is') IS NOT r.state OR json_extract(r.record, '$.round') IS NOT r.round \
         OR (r.state IN ('committed', 'failed')) <> (r.ended IS NOT NULL)",
    ),
    (
        "round-result",
        "SELECT name || ' round ' || round, 'it is ' || state || ' and has ' || n || ' results' FROM (SELECT p.name, r.*, \
         (SELECT count(*) FROM results s WHERE s.pool_id = r.pool_id AND s.round = r.round AND s.of IS NULL) AS n \
         FROM rounds r JOIN pools p ON p.id = r.pool_id) WHERE n <> (state = 'committed')",
    ),
    (
        "round-ready",
        "SELECT p.name || ' round ' || r.round, 'it is ready and has no manifest' FROM rounds r JOIN pools p ON p.id = r.pool_id \
         WHERE json_extract(r.record, '$.ready') AND NOT EXISTS \
         (SELECT 1 FROM manifests m WHERE m.pool_id = r.pool_id AND m.seq = r.round)",
    ),
    (
        "attempt-round",
        "SELECT p.name || ' round ' || a.round || ' attempt ' || a.attempt, 'the round does not know it' \
         FROM attempts a JOIN pools p ON p.id = a.pool_id WHERE NOT EXISTS (SELECT 1 FROM rounds r WHERE r.pool_id = a.pool_id \
         AND r.round = a.round AND json_extract(r.record, '$.attempt') >= a.attempt)",
    ),
    (
        "round-attempt",
        "SELECT p.name || ' round ' || r.round, 'it is leased and its attempt has no row' FROM rounds r \
         JOIN pools p ON p.id = r.pool_id WHERE r.state = 'leased' AND NOT EXISTS (SELECT 1 FROM attempts a \
         WHERE a.pool_id = r.pool_id AND a.round = r.round AND a.attempt = json_extract(r.record, '$.attempt'))",
    ),
    (
        "result-round",
        "SELECT p.name || ' version ' || s.version, 'its round, or the version that it publishes again, is not there' \
         FROM results s JOIN pools p ON p.id = s.pool_id WHERE NOT EXISTS \
         (SELECT 1 FROM rounds r WHERE r.pool_id = s.pool_id AND r.round = s.round) OR (s.of IS NOT NULL AND NOT EXISTS \
         (SELECT 1 FROM results o WHERE o.pool_id = s.pool_id AND o.version = s.of AND o.object_id = s.object_id))",
    ),
    (
        "result-object",
        "SELECT p.name || ' version ' || s.version, 'its object is ' || coalesce(o.state || ', with ' || o.size || ' bytes for ' \
         || s.size, 'not there') FROM results s JOIN pools p ON p.id = s.pool_id LEFT JOIN objects o ON o.id = s.object_id \
         WHERE s.expired IS NULL AND (o.state IS NOT 'live' OR o.size <> s.size OR o.sha256 <> s.sha256 \
         OR length(s.data) <> s.size)",
    ),
    (
        "manifest-object",
        "SELECT p.name || ' manifest ' || m.seq, 'its object is ' || coalesce(o.state, 'not there') || ', or another' \
         FROM manifests m JOIN pools p ON p.id = m.pool_id JOIN batches b ON b.pool_id = m.pool_id AND b.round = m.seq \
         LEFT JOIN objects o ON o.id = m.object_id WHERE b.retention = 'kept' \
         AND (o.state IS NOT 'live' OR o.sha256 <> m.sha256)",
    ),
    (
        "pack-object",
        "SELECT p.name || ' batch ' || b.batch || ' pack ' || k.n, 'its object is ' || coalesce(o.state, 'not there') \
         FROM packs k JOIN batches b ON b.id = k.batch_id JOIN pools p ON p.id = b.pool_id \
         LEFT JOIN objects o ON o.id = k.object_id WHERE b.retention = 'kept' AND o.state IS NOT 'live'",
    ),
    (
        "story-object",
        "SELECT p.name || ' round ' || r.round, 'the object of round.json is ' || coalesce(o.state, 'not there') \
         FROM rounds r JOIN pools p ON p.id = r.pool_id LEFT JOIN objects o ON o.id = r.story_object \
         WHERE r.story_object IS NOT NULL AND r.expired IS NULL AND o.state IS NOT 'live'",
    ),
    (
        "upload-object",
        "SELECT m.name || '/' || u.upload, 'its object is ' || coalesce(o.state || ', with ' || o.size || ' bytes for ' || u.size, \
         'not there') FROM uploads u JOIN batches b ON b.id = u.batch_id LEFT JOIN members m ON m.id = u.member_id \
         LEFT JOIN objects o ON o.id = u.object_id WHERE u.object_id IS NOT NULL AND b.retention = 'kept' \
         AND (o.state IS NOT 'live' OR o.size <> u.size OR o.sha256 <> u.sha256)",
    ),
    (
        "upload-bytes",
        "SELECT m.name || '/' || u.upload, 'its bytes are neither in the ledger nor in a pack' FROM uploads u \
         JOIN batches b ON b.id = u.batch_id LEFT JOIN members m ON m.id = u.member_id \
         WHERE u.object_id IS NULL AND b.retention = 'kept' AND NOT EXISTS (SELECT 1 FROM payloads p WHERE p.seq = u.seq) \
         AND (u.seq > b.packed_seq OR EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) \
         OR NOT EXISTS (SELECT 1 FROM packs k WHERE k.batch_id = u.batch_id AND k.last_seq >= u.seq))",
    ),
    (
        "upload-place",
        "SELECT coalesce(m.name, '?') || '/' || u.upload, 'its member, batch or rule is not what it can be' FROM uploads u \
         LEFT JOIN members m ON m.id = u.member_id LEFT JOIN batches b ON b.id = u.batch_id \
         WHERE m.pool_id IS NOT u.seq >> 40 OR (u.batch_id IS NULL) <> (u.rule IS NOT NULL) \
         OR (u.batch_id IS NOT NULL AND b.pool_id IS NOT u.seq >> 40)",
    ),
    (
        "payload",
        "SELECT 'seq ' || (p.seq & 1099511627775) || ' of pool row ' || (p.seq >> 40), coalesce('the ledger holds ' || \
         length(p.data) || ' bytes of a file of ' || u.size, 'no upload has this payload') \
         FROM payloads p LEFT JOIN uploads u ON u.seq = p.seq WHERE u.size IS NOT length(p.data)",
    ),
    (
        "leftovers",
        "SELECT 'superseded seq ' || (seq & 1099511627775), 'there is no such upload' FROM superseded s \
         WHERE NOT EXISTS (SELECT 1 FROM uploads u WHERE u.seq = s.seq) \
         UNION ALL SELECT 'member row ' || member_id || ' in batch row ' || batch_id, 'one of them is not there' \
         FROM batch_members i WHERE NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = i.batch_id) \
         OR NOT EXISTS (SELECT 1 FROM members m WHERE m.id = i.member_id) \
         UNION ALL SELECT 'delivery of version ' || version || ' by member row ' || member_id, 'one of them is not there' \
         FROM deliveries d WHERE NOT EXISTS (SELECT 1 FROM results s WHERE s.pool_id = d.pool_id AND s.version = d.version) \
         OR NOT EXISTS (SELECT 1 FROM members m WHERE m.id = d.member_id) \
         UNION ALL SELECT 'log of round ' || round || ' of pool row ' || pool_id, 'there is no such round' FROM round_logs l \
         WHERE NOT EXISTS (SELECT 1 FROM rounds r WHERE r.pool_id = l.pool_id AND r.round = l.round) \
         UNION ALL SELECT 'a token of ' || m.name, 'the member is revoked' FROM tokens t JOIN members m ON m.id = t.member_id \
         WHERE m.revoked IS NOT NULL",
    ),
    (
        "object-unowned",
        "SELECT o.key, 'it counts, and no row says for what' FROM objects o WHERE o.state = 'live' \
         AND NOT EXISTS (SELECT 1 FROM packs k WHERE k.object_id = o.id) \
         AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.object_id = o.id) \
         AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.object_id = o.id) \
         AND NOT EXISTS (SELECT 1 FROM rounds r WHERE r.story_object = o.id) \
         AND NOT EXISTS (SELECT 1 FROM results s WHERE s.object_id = o.id)",
    ),
    (
        "grant-object",
        "SELECT coalesce(m.name, '?') || '/' || coalesce(g.upload, 'result of round ' || g.round), 'its object is ' || \
         coalesce(o.state, 'not there') FROM grants g LEFT JOIN members m ON m.id = g.member_id \
         LEFT JOIN objects o ON o.id = g.object_id WHERE o.state IS NOT 'granted' OR m.id IS NULL",
    ),
];
