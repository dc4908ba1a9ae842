use std::os::unix::fs::OpenOptionsExt as _;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;
use crate::Tls;

/// A pair that holds in these years, as files.
pub(in crate::tls) fn pair(dir: &Path, from: i32, to: i32) -> Files {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
    let files = Files { cert: dir.join("cert"), key: dir.join("key"), clients: None };
    std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
    write_key(&files.key, &key.serialize_pem());
    files
}

fn write_key(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// What is said of them.
fn wrong(files: &Files) -> Vec<(Part, String)> {
    let wrong = Tls::load(files.clone()).expect_err("the files are wrong");
    wrong.into_iter().map(|wrong| (wrong.part, wrong.message)).collect()
}

#[test]
fn a_certificate_is_used_only_in_its_time() {
    let dir = tempfile::tempdir().unwrap();
    Tls::load(pair(dir.path(), 2020, 2100)).unwrap();
    for (from, to, says) in [(2020, 2021, "ended on 2021-01-01"), (2099, 2100, "clock")] {
        let said = wrong(&pair(dir.path(), from, to));
        assert!(said.len() == 1 && said[0].0 == Part::Cert && said[0].1.contains(says), "{said:?}");
    }
}

#[test]
fn a_key_with_a_password_and_a_file_that_is_none_are_told_apart_from_a_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    let files = pair(dir.path(), 2020, 2100);
    write_key(
        &files.key,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let said = wrong(&files);
    assert!(said.len() == 1 && said[0].1.contains("openssl pkey"), "{said:?}");
    write_key(&files.key, &KeyPair::generate().unwrap().serialize_pem());
    assert!(wrong(&files)[0].1.contains("is not the key of"), "{:?}", wrong(&files));
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let missing = |name: &str| dir.path().join(name);
    let files = Files { cert: missing("a"), key: missing("b"), clients: Some(missing("c")) };
    let parts: Vec<Part> = wrong(&files).into_iter().map(|(part, _)| part).collect();
    assert_eq!(parts, [Part::Cert, Part::Key, Part::Clients]);
}
