//! Fuzz targets of the two kinds of TOML files.

use millpond_fuzz::{Seen, Target, run};

use super::{BadConfig, Config, PoolFile};
use crate::rounds::Policy;

const WORDS: &[&[u8]] = &[
    b"[server]\n",
    b"[tls]\n",
    b"[mqtt]\n",
    b"[http]\n",
    b"[storage]\n",
    b"[log]\n",
    b"[limits]\n",
    b"listen = \"127.0.0.1:0\"\n",
    b"tls_listen = \"\"\n",
    b"mode = \"external\"\n",
    b"endpoint = \"https://s3.example.org\"\n",
    b"public_url = \"\"\n",
    b"access_key = \"key\"\n",
    b"secret_key = \"planted-secret-of-the-tests\"\n",
    b"session_token = \"planted-secret-too\"\n",
    b"publish_max = 1\n",
    b"bundle_max = 4194304\n",
    b"app_topics = [\"app/+/#\"]\n",
    b"filter = \"debug\"\n",
    b"quota_bytes = 1\n",
    b"cors_origins = [\"*\"]\n",
    b"allow_plaintext = true\n",
    b"true",
    b"false",
    b"\"\"",
    b"[]",
    b"{}",
    b"-1",
    b"1e9",
    b"1979-05-27",
    b"\"\"\"",
    b"'",
    b"=",
    b".",
    b"[[",
    b"]]",
    b"\xff",
];

const POOL_WORDS: &[&[u8]] = &[
    b"name = \"demo\"\n",
    b"grouping = \"window\"\n",
    b"grouping = \"label\"\n",
    b"grouping = \"count\"\n",
    b"count = 3\n",
    b"window_s = 3600\n",
    b"select = \"latest\"\n",
    b"late = \"reject\"\n",
    b"quorum = 1\n",
    b"quorum_share = 0.5\n",
    b"grace_s = 1\n",
    b"deadline_s = 60\n",
    b"max_age_s = 60\n",
    b"min_uploads = 1\n",
    b"below_minimum = \"skip\"\n",
    b"lease_term_s = 60\n",
    b"parallel_rounds = 2\n",
    b"keep_results = 1\n",
    b"require_sha256 = true\n",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"-1",
    b"nan",
    b"inf",
    b"[x]\n",
    b"=",
    b"'",
];

/// Every problem says where it is, in a line of its own, and what is wrong with a secret is said without it.
fn told(bad: BadConfig, seen: &mut Seen) {
    assert!(!bad.0.is_empty());
    let shown = bad.to_string();
    assert_eq!(shown.lines().count(), bad.0.len(), "a line each: {shown}");
    for problem in &bad.0 {
        let is_secret = ["storage.secret_key", "storage.session_token"].contains(&problem.place.as_str());
        assert!(!is_secret || !problem.message.contains("planted-secret"), "{problem}");
    }
    let mut places: Vec<&str> = bad.0.iter().map(|problem| problem.place.as_str()).collect();
    places.sort_unstable();
    places.dedup();
    places.truncate(3);
    seen.note(places);
}

#[test]
fn fuzz_config() {
    run(&Target { name: "config", words: WORDS, max: 4_096 }, |bytes, seen| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let config = match Config::parse(text, "fuzz.toml", []) {
            Ok(config) => config,
            Err(bad) => return told(bad, seen),
        };
        assert!(Config::parse(&format!("{text}\n[no-such-section]\nx = 1\n"), "fuzz.toml", []).is_err());
        let printed = toml::to_string(&config).unwrap();
        assert!(!printed.contains("planted-secret"), "{printed}");
        if config.storage.secret_key_file.is_none() {
            let readable = printed.replace("[redacted]", "a-secret-of-the-tests");
            let mut again =
                Config::parse(&readable, "printed.toml", []).unwrap_or_else(|bad| panic!("{bad}\n{printed}"));
            again.storage.secret_key = config.storage.secret_key.clone();
            again.storage.session_token = config.storage.session_token.clone();
            assert_eq!(again, config, "{printed}");
        }
        seen.note((
            config.storage.mode as u8,
            config.mqtt.app_topics.len(),
            config.storage.secret_key.is_empty(),
        ));
        seen.note(config.tls == Config::default().tls);
    });
}

#[test]
fn fuzz_pool_file() {
    run(&Target { name: "pool-file", words: POOL_WORDS, max: 2_048 }, |bytes, seen| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let pool = match PoolFile::parse(text, "fuzz.toml") {
            Ok(pool) => pool,
            Err(bad) => return told(bad, seen),
        };
        assert!(pool.policy.problems().is_empty());
        let printed =
            format!("name = {:?}\n{}", pool.name.to_string(), toml::to_string(&pool.policy).unwrap());
        let again =
            PoolFile::parse(&printed, "printed.toml").unwrap_or_else(|bad| panic!("{bad}\n{printed}"));
        assert_eq!(again, pool, "{printed}");
        // What the API answers is what it takes.
        let json = serde_json::to_value(&pool.policy).unwrap();
        assert_eq!(serde_json::from_value::<Policy>(json.clone()).unwrap(), pool.policy, "{json}");
        seen.note((
            json["grouping"].to_string(),
            json["late"].to_string(),
            json["below_minimum"].to_string(),
        ));
        seen.note((json["select"].to_string(), pool.policy.quorum > 0, pool.policy.deadline_s > 0));
    });
}
