//! Authorities of pools and what they sign, made as the operator's manual says, by openssl. In a directory with `clients` in it,
//! which the server reads.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority for the pool: its key beside the directory that the server reads. All have the same name, as those of two
/// owners may.
pub fn authority(dir: &Path, pool: &str) {
    let script = r#"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=Fleet CA" -keyout "$1-ca.key" -out "clients/$1.crt""#;
    sh(dir, script, &[pool]);
}

/// A certificate that names this member, by that pool's authority.
pub fn certificate(dir: &Path, by: &str, uri: &str, name: &str) -> PathBuf {
    let script = r#"openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$3" \
            -keyout "$3.key" -out "$3.csr"
        printf 'subjectAltName=URI:%s' "$2" > "$3.ext"
        openssl x509 -req -in "$3.csr" -CA "clients/$1.crt" -CAkey "$1-ca.key" -days 30 -extfile "$3.ext" \
            -out "$3.crt""#;
    sh(dir, script, &[by, uri, name]);
    dir.join(name)
}

/// Puts a certificate on the list of its pool's authority.
pub fn revoke(dir: &Path, by: &str, name: &str) {
    let script = r#"printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=9\ncrlnumber=number\n' > ca.conf
        : > index.txt; echo 01 > number
        ca() { openssl ca -config ca.conf -cert "clients/$1.crt" -keyfile "$1-ca.key" $3 $4 $5; }
        ca "$1" "$2" -revoke "$2.crt"
        ca "$1" "$2" -gencrl -out list.crl
        mv list.crl "clients/$1.crl""#;
    sh(dir, script, &[by, name]);
}

fn sh(dir: &Path, script: &str, args: &[&str]) {
    let said = Command::new("sh").args(["-ec", script, "sh"]).args(args).current_dir(dir).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}
