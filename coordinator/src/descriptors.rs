//! File descriptors: each connection takes one, and the server's own files need theirs.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::{Config, StorageMode};

/// Those of the ledger, its readers, the server's own calls and whatever else is open beside connections.
const OWN: usize = 256;

/// Lets this process have as many as it may; how many that is. `None`: any number.
pub fn raise() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// Raises the limit, and says so in the log if it is less than the connections that the configuration permits would take.
pub(crate) fn prepare(config: &Config) {
    let needed = needed(config);
    if let Some(there) = raise().filter(|there| *there < needed as u64) {
        tracing::warn!(
            there,
            needed,
            "fewer files may be open than connections are permitted: raise LimitNOFILE, or lower limits.connections_max"
        );
    }
}

fn needed(config: &Config) -> usize {
    let limits = &config.limits;
    let waiting = limits.strangers_max.saturating_mul(millpond_protocol::limits::WAITING_PER_STRANGER);
    let storage = match config.storage.mode {
        // A connection, one that waits, and a file.
        StorageMode::Embedded => config.storage.connections_max.saturating_mul(3),
        StorageMode::External => 0,
    };
    let http = config.http.connections_max.saturating_mul(2);
    [limits.connections_max, limits.strangers_max, waiting, http, storage, OWN]
        .into_iter()
        .fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_unit_permits_what_the_defaults_need() {
        let manual = include_str!("../../docs/operate.md");
        let line = manual.lines().find_map(|line| line.trim().strip_prefix("LimitNOFILE=")).unwrap();
        let needed = needed(&Config::default());
        assert!(needed <= line.parse().unwrap(), "{needed}");
    }
}
