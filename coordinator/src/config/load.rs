//! From TOML and environment to a typed value, with every problem found at once.
//!
//! serde stops at its first error. As every key has a default, each leaf of the input can be read alone, in a table that
//! holds just that leaf: what fails is that leaf's problem, and what is good is put together at the end.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{Config, Secret};

/// What begins the name of a setting in the environment.
const ENV_PREFIX: &str = "MILLPOND__";

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A key such as `mqtt.listen`, the name of an environment variable, or a file.
    pub place: String,
    pub message: String,
}

impl Problem {
    pub(super) fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything that is wrong with a configuration or a pool file, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BadConfig(pub Vec<Problem>);

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file, if one is named, then the environment given as name and value pairs (others than
    /// `MILLPOND__SECTION__KEY` are ignored), and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BadConfig> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                BadConfig(vec![Problem::new(path.display().to_string(), format!("cannot be read: {error}"))])
            })?,
            None => String::new(),
        };
        let place = file.map(|path| path.display().to_string()).unwrap_or_default();
        Self::parse(&text, &place, env)
    }

    /// [`Config::load`] with the file's text in hand; `place` is its name for messages.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        place: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BadConfig> {
        let mut problems = Vec::new();
        let mut leaves = Vec::new();
        match text.parse::<Table>() {
            Ok(table) => collect(&table, &mut Vec::new(), &mut leaves),
            Err(error) => problems.push(broken(text, place, &error)),
        }
        for (name, value) in env {
            if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
                let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
                leaves.retain(|leaf| leaf.path != path);
                leaves.push(Leaf { value: env_value(&path, &value), place: name, path });
            }
        }
        let mut config: Self = put_together(leaves, &mut problems);
        config.read_secrets(&mut problems);
        config.check(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(BadConfig(problems)) }
    }

    fn read_secrets(&mut self, problems: &mut Vec<Problem>) {
        if let Some(path) = &self.http.metrics_token_file {
            match read_secret(path) {
                Ok(secret) => self.http.metrics_token = secret,
                Err(message) => problems.push(Problem::new("http.metrics_token_file", message)),
            }
        }
        let Some(path) = self.storage.secret_key_file.clone() else { return };
        if !self.storage.secret_key.is_empty() {
            problems.push(Problem::new(
                "storage.secret_key_file",
                "secret_key is set as well: keep one of the two",
            ));
        }
        match read_secret(&path) {
            Ok(secret) => self.storage.secret_key = secret,
            Err(message) => problems.push(Problem::new("storage.secret_key_file", message)),
        }
    }
}

fn read_secret(path: &str) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    match text.trim() {
        "" => Err(format!("{path} is empty")),
        secret => Ok(Secret::new(secret)),
    }
}

/// One value of the input.
pub(super) struct Leaf {
    path: Vec<String>,
    value: Value,
    /// Where it stands, for messages.
    place: String,
}

/// Every leaf of a table; an empty table counts as one, so that an unknown section does not pass unseen.
pub(super) fn collect(table: &Table, path: &mut Vec<String>, leaves: &mut Vec<Leaf>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) if !inner.is_empty() => collect(inner, path, leaves),
            value => leaves.push(Leaf { path: path.clone(), value: value.clone(), place: path.join(".") }),
        }
        path.pop();
    }
}

/// Reads each leaf alone, then the good ones together.
pub(super) fn put_together<T: DeserializeOwned + Default>(
    leaves: Vec<Leaf>,
    problems: &mut Vec<Problem>,
) -> T {
    let mut whole = Table::new();
    for leaf in leaves {
        let mut alone = Table::new();
        set(&mut alone, &leaf.path, leaf.value.clone());
        match Value::Table(alone).try_into::<T>() {
            Ok(_) => set(&mut whole, &leaf.path, leaf.value),
            Err(error) => problems.push(Problem::new(leaf.place, plain(error.message()))),
        }
    }
    match Value::Table(whole).try_into() {
        Ok(value) => value,
        Err(error) => {
            problems.push(Problem::new("the whole", plain(error.message())));
            T::default()
        }
    }
}

fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let inner = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            // A section that is no table has its own problem already.
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// The environment knows only text: it is text where text fits, and otherwise what TOML makes of it.
fn env_value(path: &[String], text: &str) -> Value {
    let as_text = Value::String(text.to_owned());
    let fits = |value: &Value| {
        let mut alone = Table::new();
        set(&mut alone, path, value.clone());
        Value::Table(alone).try_into::<Config>().is_ok()
    };
    if fits(&as_text) {
        return as_text;
    }
    let as_toml = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    as_toml.unwrap_or(as_text)
}

/// A problem of the text as a whole. toml's own display would show the line, and with it perhaps a secret.
pub(super) fn broken(text: &str, place: &str, error: &toml::de::Error) -> Problem {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|b| *b == b'\n').count() + 1;
    Problem::new(place, format!("line {line}: {}", plain(error.message())))
}

/// serde speaks of fields, an operator of keys.
fn plain(message: &str) -> String {
    message.trim_end().replace("unknown field", "unknown key").replace('\n', " ")
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
