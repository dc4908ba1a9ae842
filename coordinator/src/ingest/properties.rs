//! What an MQTT 5 client says of a file beside its bytes.

use millpond_broker::Incoming;
use millpond_protocol::{Code, FileName, Label, Refusal, Sha256, Timestamp, limits};

/// The parsed properties of `up` and `result`. Unknown user properties are ignored.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub name: Option<FileName>,
    pub event_time: Option<Timestamp>,
    pub label: Option<Label>,
    pub sha256: Option<Sha256>,
    /// JSON.
    pub meta: Option<String>,
    pub content_type: Option<String>,
}

impl Properties {
    /// # Errors
    /// `malformed`, naming the property; `too_large` for meta and content type.
    pub fn of(message: &Incoming) -> Result<Self, Refusal> {
        let mut found = Self { content_type: message.content_type.clone(), ..Self::default() };
        content_type_fits(found.content_type.as_deref())?;
        for (key, value) in &message.user_properties {
            let bad = |why: String| Refusal::new(Code::Malformed, format!("user property {key}: {why}"));
            match key.as_str() {
                "name" => found.name = Some(value.parse().map_err(|e| bad(format!("{e}")))?),
                "event-time" => found.event_time = Some(value.parse().map_err(|e| bad(format!("{e}")))?),
                "label" => found.label = Some(value.parse().map_err(|e| bad(format!("{e}")))?),
                "sha256" => found.sha256 = Some(value.parse().map_err(|e| bad(format!("{e}")))?),
                "meta" => found.meta = Some(meta(value)?),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Checks that `meta` is JSON and small enough.
pub(super) fn meta(text: &str) -> Result<String, Refusal> {
    if text.len() > limits::META_MAX {
        let message = format!("meta has {} bytes", text.len());
        return Err(Refusal::new(Code::TooLarge, message).limit(limits::META_MAX as u64));
    }
    // Read whole: what is skipped over may hold escapes, numbers and depths that nobody can read who needs it.
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(Refusal::new(Code::Malformed, format!("meta is not JSON: {e}"))),
    }
}

pub(super) fn content_type_fits(content_type: Option<&str>) -> Result<(), Refusal> {
    match content_type {
        Some(text) if text.len() > limits::CONTENT_TYPE_MAX => {
            Err(Refusal::new(Code::TooLarge, "the content type is too long")
                .limit(limits::CONTENT_TYPE_MAX as u64))
        }
        _ => Ok(()),
    }
}

/// Compares a declared hash with that of the bytes.
pub(super) fn matches(declared: Option<Sha256>, found: Sha256) -> Result<(), Refusal> {
    match declared {
        Some(declared) if declared != found => {
            Err(Refusal::new(Code::Mismatch, format!("the bytes have SHA-256 {found}, not {declared}"))
                .hint("the bytes changed on the way, or the hash is of something else"))
        }
        _ => Ok(()),
    }
}
