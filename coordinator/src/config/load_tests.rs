use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::*;
use crate::config::{LogFormat, PoolFile, StorageMode};
use crate::rounds::Policy;

fn parse(text: &str, env: &[(&str, &str)]) -> Result<Config, BadConfig> {
    Config::parse(text, "test.toml", env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

/// The places of all problems; the configuration must have some.
fn places(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let BadConfig(problems) = parse(text, env).expect_err("the configuration is bad");
    problems.into_iter().map(|problem| problem.place).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn nothing_at_all_is_a_configuration() {
    assert_eq!(parse("", &[]).unwrap(), Config::default());
}

#[test]
fn every_bad_value_is_reported_at_once_and_with_its_place() {
    let text = r#"
        [mqtt]
        listen = "nowhere"
        publish_max = -1
        lisen = "127.0.0.1:1"
        [log]
        format = "xml"
        [sea]
        [storage]
        region = 5
        [http]
        request_timeout_s = 0
    "#;
    let env = [("MILLPOND__LIMITS__STRANGERS_MAX", "many"), ("MILLPOND__NO__SUCH", "1")];
    let mut found = places(text, &env);
    found.sort();
    let expected = [
        "MILLPOND__LIMITS__STRANGERS_MAX",
        "MILLPOND__NO__SUCH",
        "http.request_timeout_s",
        "log.format",
        "mqtt.lisen",
        "mqtt.listen",
        "mqtt.publish_max",
        "sea",
        "storage.region",
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_environment_wins_over_the_file_and_is_read_as_the_type_of_its_key() {
    let env = [
        ("MILLPOND__MQTT__LISTEN", "127.0.0.1:1900"),
        ("MILLPOND__MQTT__PUBLISH_MAX", "2048"),
        ("MILLPOND__STORAGE__ACCESS_KEY", "123"),
        ("MILLPOND__STORAGE__SECRET_KEY", "1234567890123456"),
        ("MILLPOND__SERVER__ALLOW_PLAINTEXT", "true"),
        ("MILLPOND_SERVER", "http://not-a-setting"),
        ("PATH", "/bin"),
    ];
    // What the environment replaces is not looked at.
    let config = parse("[mqtt]\nlisten = \"nowhere\"\n[log]\nformat = \"json\"", &env).unwrap();
    assert_eq!(config.mqtt.listen, "127.0.0.1:1900".parse::<SocketAddr>().unwrap());
    assert_eq!(config.mqtt.publish_max, 2048);
    assert_eq!(config.storage.access_key, "123");
    assert_eq!(config.storage.secret_key.expose(), "1234567890123456");
    assert!(config.server.allow_plaintext);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn broken_toml_is_reported_beside_the_environments_problems() {
    assert_eq!(places("[mqtt", &[("MILLPOND__LOG__FORMAT", "xml")]), ["test.toml", "MILLPOND__LOG__FORMAT"]);
    let wrong = parse("[storage]\nsecret_key = \"hush\" hush", &[]).unwrap_err().to_string();
    assert!(wrong.contains("line 2") && !wrong.contains("hush"), "{wrong}");
}

#[test]
fn a_file_that_is_not_there_is_a_problem_with_its_name() {
    let BadConfig(problems) = Config::load(Some(Path::new("/no/such.toml")), []).unwrap_err();
    assert_eq!(problems[0].place, "/no/such.toml");
}

#[test]
fn listening_beyond_loopback_needs_allow_plaintext() {
    let open = "[mqtt]\nlisten = \"0.0.0.0:1883\"\n[http]\nlisten = \"[::]:8080\"\n[storage]\npublic_url = \"http://files.example\"\n";
    assert_eq!(places(open, &[]), ["mqtt.listen", "http.listen"]);
    assert!(parse(open, &[("MILLPOND__SERVER__ALLOW_PLAINTEXT", "true")]).is_ok());
}

#[test]
fn a_public_mqtt_listener_needs_urls_that_clients_can_reach() {
    let open = "[server]\nallow_plaintext = true\n[mqtt]\nlisten = \"0.0.0.0:1883\"\n";
    assert_eq!(places(open, &[]), ["storage.public_url"]);
    for loopback in ["http://localhost:9000", "http://127.9.9.9", "http://[::1]", "http://0.0.0.0:9000"] {
        assert_eq!(places(open, &[("MILLPOND__STORAGE__PUBLIC_URL", loopback)]), ["storage.public_url"]);
    }
    assert!(parse(open, &[("MILLPOND__STORAGE__PUBLIC_URL", "http://files.example:9000")]).is_ok());
}

#[test]
fn two_listeners_on_one_address_are_a_problem_unless_the_port_is_chosen_by_the_system() {
    let both =
        |port: u16| format!("[mqtt]\nlisten = \"127.0.0.1:{port}\"\n[http]\nlisten = \"127.0.0.1:{port}\"");
    assert_eq!(places(&both(7000), &[]), ["http.listen"]);
    assert!(parse(&both(0), &[]).is_ok());
}

#[test]
fn external_storage_names_everything_it_lacks() {
    assert_eq!(
        places("[storage]\nmode = \"external\"\nbucket = \"No\"", &[]),
        ["storage.endpoint", "storage.access_key", "storage.secret_key", "storage.bucket"]
    );
    let whole = "[storage]\nmode = \"external\"\nendpoint = \"https://s3.example\"\naccess_key = \"a\"\nsecret_key = \"s\"";
    let config = parse(whole, &[]).unwrap();
    assert_eq!(config.storage.mode, StorageMode::External);
    assert_eq!(config.storage.public_url().unwrap().as_str(), "https://s3.example/");
    assert_eq!(places(&whole.replace("s3.example", "s3.example/x?y"), &[]), ["storage.endpoint"]);
}

#[test]
fn what_storage_would_refuse_at_the_start_is_a_problem_of_the_configuration() {
    let keys = "access_key = \"a\"\nsecret_key";
    for (text, key) in [
        (format!("{keys} = \"short\""), "secret_key"),
        (format!("{keys} = \"a secret with spaces\""), "secret_key"),
        ("bucket = \"a.-b\"".to_owned(), "bucket"),
        ("bucket = \"10.0.0.1\"".to_owned(), "bucket"),
        (format!("region = \"{}\"", "x".repeat(300)), "region"),
        ("public_url = \"http://host/prefix\"".to_owned(), "public_url"),
    ] {
        assert_eq!(places(&format!("[storage]\n{text}"), &[]), [format!("storage.{key}")], "{text}");
    }
}

#[test]
fn sizes_that_contradict_each_other_are_named() {
    let text =
        "[mqtt]\npublish_max = 2_000_000\nbundle_max = 1_000_000\n[limits]\nuncommitted_bytes_max = 1000";
    assert_eq!(places(text, &[]), ["mqtt.publish_max", "limits.uncommitted_bytes_max"]);
    assert_eq!(places("[mqtt]\nbundle_max = 100_000_000", &[]), ["mqtt.bundle_max"]);
}

#[test]
fn a_log_filter_that_cannot_be_parsed_is_a_problem() {
    assert_eq!(places("[log]\nfilter = \"millpond=loud\"", &[]), ["log.filter"]);
}

#[test]
fn a_secret_comes_from_a_file_and_shows_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "hush-hush-hush-hush\n").unwrap();
    let env = [
        ("MILLPOND__STORAGE__ACCESS_KEY", "me"),
        ("MILLPOND__STORAGE__SECRET_KEY_FILE", file.to_str().unwrap()),
    ];
    let config = parse("", &env).unwrap();
    assert_eq!(config.storage.secret_key.expose(), "hush-hush-hush-hush");
    assert!(!format!("{config:?}").contains("hush"));
    assert!(!serde_json::to_string(&config).unwrap().contains("hush"));

    let scraped = parse("", &[("MILLPOND__HTTP__METRICS_TOKEN_FILE", file.to_str().unwrap())]).unwrap();
    assert_eq!(scraped.http.metrics_token.expose(), "hush-hush-hush-hush");
    assert!(!format!("{scraped:?}").contains("hush"));
    assert_eq!(
        places("", &[("MILLPOND__HTTP__METRICS_TOKEN_FILE", "/no/such")]),
        ["http.metrics_token_file"]
    );

    let wrong = parse("[storage]\nsecret_key = 4711", &[]).unwrap_err();
    assert!(!wrong.to_string().contains("4711"), "{wrong}");
    let env = [("MILLPOND__STORAGE__SECRET_KEY_FILE", "/no/such/key")];
    assert_eq!(
        places("[storage]\naccess_key = \"me\"\nsecret_key = \"sixteen-and-more-letters\"", &env),
        ["storage.secret_key_file"; 2]
    );
}

#[test]
fn the_shipped_file_lists_every_key_with_its_default() {
    let path = repository().join("config/millpond.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(Config::load(Some(&path), []).unwrap(), Config::default());

    let mut leaves = Vec::new();
    collect(&text.parse().unwrap(), &mut Vec::new(), &mut leaves);
    let listed: BTreeSet<String> = leaves.into_iter().map(|leaf| leaf.place).collect();
    let known = serde_json::to_value(Config::default()).unwrap();
    let known: BTreeSet<String> = known
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(section, keys)| {
            keys.as_object().unwrap().keys().map(move |key| format!("{section}.{key}"))
        })
        .collect();
    assert_eq!(listed, known);

    every_key_has_a_comment(&text);
}

#[test]
fn the_shipped_reference_of_policies_lists_every_key_with_its_default() {
    let text = std::fs::read_to_string(repository().join("config/pools/reference.toml")).unwrap();
    assert_eq!(PoolFile::parse(&text, "reference.toml").unwrap().policy, Policy::default());

    let listed: BTreeSet<String> = text.parse::<toml::Table>().unwrap().keys().cloned().collect();
    let known = serde_json::to_value(Policy::default()).unwrap();
    let known = known.as_object().unwrap().keys().cloned().chain(["name".to_owned()]).collect();
    assert_eq!(listed, known);
    every_key_has_a_comment(&text);
}

/// A key without a comment above it tells nobody anything.
#[track_caller]
fn every_key_has_a_comment(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        if pair[1].contains(" = ") && !pair[1].starts_with('#') {
            assert!(pair[0].starts_with('#'), "no comment above {:?}", pair[1]);
        }
    }
}

#[test]
fn every_shipped_pool_is_valid_and_called_like_its_file() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("config/pools")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let pool = PoolFile::parse(&text, &path.display().to_string()).unwrap();
        assert_eq!(Some(pool.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
        seen += 1;
    }
    assert!(seen >= 4, "{seen} example pools");
}

#[test]
fn a_pool_file_names_all_its_problems() {
    let text = "name = \"Not Good\"\nwindow_s = \"long\"\ngroupin = \"label\"\nselect = \"some\"";
    let BadConfig(problems) = PoolFile::parse(text, "pool.toml").unwrap_err();
    let mut places: Vec<&str> = problems.iter().map(|problem| problem.place.as_str()).collect();
    places.sort_unstable();
    assert_eq!(places, ["groupin", "name", "select", "window_s"]);
    assert!(PoolFile::parse("window_s = 60", "pool.toml").unwrap_err().to_string().contains("name"));
}
