//! Millpond on SeaweedFS.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::{SeaweedFs, binary};

impl SeaweedFs {
    /// The settings of a server that keeps its files there.
    pub fn settings(&self) -> [(&'static str, &str); 6] {
        [
            ("MILLPOND__STORAGE__MODE", "external"),
            ("MILLPOND__STORAGE__ENDPOINT", &self.endpoint),
            ("MILLPOND__STORAGE__BUCKET", Self::BUCKET),
            ("MILLPOND__STORAGE__ACCESS_KEY", &self.keys.access),
            ("MILLPOND__STORAGE__SECRET_KEY", &self.keys.secret),
            ("MILLPOND__STORAGE__SESSION_TOKEN", &self.keys.token),
        ]
    }

    /// `millpond serve --check-config` with settings changed, in an environment that names a proxy which is not there.
    pub fn check(&self, changed: &[(&str, &str)]) -> Output {
        Command::new(binary())
            .args(["serve", "--check-config"])
            .envs(self.settings())
            .envs(changed.iter().copied())
            .envs([("HTTP_PROXY", "http://127.0.0.1:9"), ("http_proxy", "http://127.0.0.1:9")])
            .output()
            .unwrap()
    }

    /// Waits until it can store something, which the check finds out.
    pub async fn ready(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let checked = self.check(&[]);
            if checked.status.success() {
                assert!(checked.stderr.is_empty(), "{}", String::from_utf8_lossy(&checked.stderr));
                return;
            }
            let refused = String::from_utf8_lossy(&checked.stderr);
            assert!(Instant::now() < until, "{refused}\nSeaweedFS said:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
