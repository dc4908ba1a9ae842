//! Every rule of rows finds the damage that it is there for, and nothing else finds it.

use std::collections::BTreeSet;
use std::path::Path;

use millpond_tests::Server;
use rusqlite::Connection;

use super::{check, lived};

/// What is wrong, by which rule it is found, and what else has to be said of it.
struct Damage {
    rule: &'static str,
    sql: &'static str,
    also: &'static [&'static str],
}

const fn damage(rule: &'static str, sql: &'static str) -> Damage {
    Damage { rule, sql, also: &[] }
}

/// `{demo}`, `{sets}` and `{skips}` are the pools' ids.
const DAMAGES: &[Damage] = &[
    damage("pool-batches", "UPDATE pools SET batches = batches + 1 WHERE id = {skips}"),
    damage("pool-rounds", "UPDATE pools SET rounds = rounds + 1 WHERE id = {skips}"),
    damage("pool-versions", "UPDATE pools SET versions = versions + 1 WHERE id = {demo}"),
    damage("pool-committed", "UPDATE pools SET newest_committed = newest_committed + 1 WHERE id = {demo}"),
    damage("pool-pointer", "UPDATE pools SET pointer = 99 WHERE id = {demo}"),
    damage("pool-seq", "UPDATE pools SET seq = 1 WHERE id = {demo}"),
    damage("pool-kept", "UPDATE pools SET kept_bytes = kept_bytes + 1 WHERE id = {demo}"),
    damage("pool-grants", "UPDATE pools SET granted_bytes = granted_bytes + 1 WHERE id = {demo}"),
    damage("member-asks", "UPDATE members SET asks = asks + 1 WHERE pool_id = {demo}"),
    damage("batch-uploads", "UPDATE batches SET count = count + 1 WHERE pool_id = {demo} AND state = 'open'"),
    damage("batch-carried", "UPDATE batches SET carried_into = 99 WHERE pool_id = {demo} AND state = 'open'"),
    damage("batch-sealed", "UPDATE batches SET sealed = NULL WHERE pool_id = {skips}"),
    damage("batch-round", "UPDATE batches SET runs = 1 WHERE pool_id = {skips}"),
    damage("batch-retention", "UPDATE batches SET expired = 1 WHERE pool_id = {skips}"),
    damage(
        "round-batch",
        "INSERT INTO rounds (pool_id, round, batch_id, state, record) VALUES ({demo}, 77, 77, 'offered', \
         json_object('round', 77, 'attempt', 0, 'state', json_object('is', 'offered')))",
    ),
    damage("round-record", "UPDATE rounds SET state = 'offered' WHERE pool_id = {sets}"),
    damage(
        "round-result",
        "UPDATE pools SET kept_bytes = kept_bytes - (SELECT size FROM results WHERE pool_id = {demo} AND version = 2) \
         WHERE id = {demo}; UPDATE results SET of = 2 WHERE pool_id = {demo} AND version = 2",
    ),
    Damage {
        rule: "round-ready",
        sql: "DELETE FROM manifests WHERE pool_id = {demo} AND seq = 2",
        // Its object belongs to nothing then.
        also: &["object-unowned"],
    },
    damage(
        "attempt-round",
        "INSERT INTO attempts (pool_id, round, attempt, member_id, leased) VALUES ({demo}, 1, 99, 1, 1)",
    ),
    damage(
        "round-attempt",
        "UPDATE rounds SET state = 'leased', ended = NULL, record = json_set(record, '$.state.is', 'leased') \
         WHERE pool_id = {sets}; DELETE FROM attempts WHERE pool_id = {sets}",
    ),
    damage("result-round", "UPDATE results SET of = 99 WHERE pool_id = {demo} AND version = 3"),
    damage("result-object", "UPDATE results SET size = size + 1 WHERE pool_id = {demo} AND version = 3"),
    damage(
        "manifest-object",
        "UPDATE objects SET sha256 = zeroblob(32) WHERE id = \
         (SELECT object_id FROM manifests WHERE pool_id = {demo} AND seq = 2)",
    ),
    damage(
        "pack-object",
        "UPDATE objects SET state = 'granted' WHERE id = (SELECT object_id FROM packs LIMIT 1)",
    ),
    damage(
        "story-object",
        "UPDATE objects SET state = 'granted' WHERE id = \
         (SELECT story_object FROM rounds WHERE pool_id = {demo} AND round = 1)",
    ),
    damage(
        "upload-object",
        "UPDATE objects SET state = 'granted' WHERE id = (SELECT object_id FROM uploads WHERE upload = 'round-2-2')",
    ),
    damage(
        "upload-bytes",
        "DELETE FROM payloads WHERE seq = (SELECT seq FROM uploads WHERE upload = 'open-1')",
    ),
    damage("upload-place", "UPDATE uploads SET rule = 'max_size' WHERE upload = 'open-1'"),
    damage(
        "payload",
        "UPDATE payloads SET data = x'00' WHERE seq = (SELECT seq FROM uploads WHERE upload = 'open-1')",
    ),
    damage("payload", "INSERT INTO payloads VALUES (1, x'00')"),
    damage("leftovers", "INSERT INTO superseded VALUES (1)"),
    damage(
        "leftovers",
        "INSERT INTO batch_members (batch_id, member_id) SELECT 99, id FROM members WHERE pool_id = {demo} LIMIT 1",
    ),
    damage(
        "leftovers",
        "INSERT INTO batch_members (batch_id, member_id) SELECT id, 99999 FROM batches WHERE pool_id = {demo} LIMIT 1",
    ),
    damage(
        "leftovers",
        "INSERT INTO deliveries (pool_id, version, member_id, state, at) \
         SELECT {demo}, 99, id, 'verified', 1 FROM members WHERE pool_id = {demo} LIMIT 1",
    ),
    damage(
        "leftovers",
        "INSERT INTO deliveries (pool_id, version, member_id, state, at) VALUES ({demo}, 1, 99999, 'verified', 1)",
    ),
    damage("leftovers", "INSERT INTO round_logs VALUES ({demo}, 99, 1, 1, 'ground')"),
    damage(
        "leftovers",
        "INSERT INTO tokens (hash, member_id, created) SELECT zeroblob(32), id, 1 FROM members WHERE revoked IS NOT NULL LIMIT 1",
    ),
    Damage {
        rule: "object-unowned",
        sql: "INSERT INTO objects (key, state, size, sha256, created) VALUES ('9/pack/lost', 'live', 3, zeroblob(32), 1)",
        // Nor is it in storage.
        also: &["object-missing"],
    },
    damage(
        "grant-object",
        "INSERT INTO grants (pool_id, member_id, upload, object_id, received, expires) \
         SELECT {demo}, id, 'lost', 99999, 1, 9000000000000 FROM members WHERE pool_id = {demo} AND revoked IS NULL LIMIT 1",
    ),
];

/// The ledger of a server that runs, as somebody else writes to it.
struct Damaged {
    sql: Connection,
    pools: Vec<(String, i64)>,
}

impl Damaged {
    /// Keeps a copy, by which what is planted is taken back.
    fn open(server: &Server, whole: &Path) -> Self {
        let sql = Connection::open(server.data().join("ledger.db")).unwrap();
        sql.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
        sql.pragma_update(None, "foreign_keys", false).unwrap();
        sql.execute("VACUUM INTO ?1", [whole.to_str().unwrap()]).unwrap();
        sql.execute("ATTACH ?1 AS whole", [whole.to_str().unwrap()]).unwrap();
        let mut pools = Vec::new();
        for pool in ["demo", "sets", "skips"] {
            let id = sql.query_row("SELECT id FROM pools WHERE name = ?1", [pool], |row| row.get(0)).unwrap();
            pools.push((format!("{{{pool}}}"), id));
        }
        Self { sql, pools }
    }

    /// The statements of a damage, each of which has to change something; and the tables that they write to.
    fn plant(&self, sql: &str) -> BTreeSet<String> {
        let sql =
            self.pools.iter().fold(sql.to_owned(), |sql, (pool, id)| sql.replace(pool, &id.to_string()));
        let statements = sql.split("; ").map(|sql| {
            assert!(self.sql.execute(sql, []).unwrap() > 0, "nothing is planted by {sql}");
            let mut words = sql.split(' ').skip_while(|word| !["UPDATE", "INTO", "FROM"].contains(word));
            words.nth(1).unwrap().to_owned()
        });
        statements.collect()
    }

    fn take_back(&mut self, tables: &BTreeSet<String>) {
        let all = self.sql.transaction().unwrap();
        for table in tables {
            let back =
                format!("DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM whole.{table};");
            all.execute_batch(&back).unwrap();
        }
        all.commit().unwrap();
    }
}

/// The kinds that a check tells, and how many rules it has.
fn found(server: &Server) -> (BTreeSet<String>, u64) {
    let (lines, _) = check(server, &[]);
    let kinds = lines.iter().filter_map(|line| line["difference"]["kind"].as_str().map(str::to_owned));
    (kinds.collect(), lines.last().unwrap()["end"]["rules"].as_u64().unwrap())
}

#[tokio::test]
async fn every_rule_finds_the_damage_that_it_is_for_and_no_other_rule_does() {
    let server = lived().await;
    let kept = tempfile::tempdir().unwrap();
    let mut ledger = Damaged::open(&server, &kept.path().join("whole.db"));
    let (whole, rules) = found(&server);
    assert_eq!(whole, BTreeSet::new());
    let planted: BTreeSet<_> = DAMAGES.iter().map(|damage| damage.rule).collect();
    assert_eq!(planted.len() as u64, rules, "each rule needs a damage that it finds: {planted:?}");
    let mut wrong = Vec::new();
    for damage in DAMAGES {
        let tables = ledger.plant(damage.sql);
        let (is, _) = found(&server);
        let expected: BTreeSet<_> =
            damage.also.iter().chain([&damage.rule]).map(|kind| (*kind).to_owned()).collect();
        if is != expected {
            wrong.push(format!("{}: {is:?} after {}", damage.rule, damage.sql));
        }
        ledger.take_back(&tables);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(found(&server).0, BTreeSet::new(), "something is left of what was planted");
}
