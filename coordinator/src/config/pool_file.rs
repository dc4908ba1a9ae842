//! A pool in a file: its name and its policy, for `millpond pool apply`.

use millpond_protocol::PoolName;
use toml::{Table, Value};

use super::load::{BadConfig, Problem, broken, collect, put_together};
use crate::rounds::Policy;

/// A pool as a file describes it: the key `name`, and beside it those of [`Policy`]. What the file leaves out is the default.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolFile {
    pub name: PoolName,
    pub policy: Policy,
}

impl PoolFile {
    /// Reads the TOML text; `place` is the file's name for messages.
    ///
    /// # Errors
    /// Everything that is wrong with it, the policy's own problems included.
    pub fn parse(text: &str, place: &str) -> Result<Self, BadConfig> {
        let mut table =
            text.parse::<Table>().map_err(|error| BadConfig(vec![broken(text, place, &error)]))?;
        let mut problems = Vec::new();
        let name = match table.remove("name") {
            Some(Value::String(name)) => {
                name.parse().map_err(|error| problems.push(Problem::new("name", format!("{error}")))).ok()
            }
            Some(_) => {
                problems.push(Problem::new("name", "is a text in quotes"));
                None
            }
            None => {
                problems.push(Problem::new("name", "is missing: which pool is this?"));
                None
            }
        };
        let mut leaves = Vec::new();
        collect(&table, &mut Vec::new(), &mut leaves);
        let policy: Policy = put_together(leaves, &mut problems);
        problems.extend(policy.problems().into_iter().map(|message| Problem::new("policy", message)));
        match name {
            Some(name) if problems.is_empty() => Ok(Self { name, policy }),
            _ => Err(BadConfig(problems)),
        }
    }
}
