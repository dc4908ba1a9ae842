//! The one table of errors: every refusal has a code that means the same over MQTT 3.1.1, MQTT 5 and HTTP.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::BadName;
use crate::time::BadTime;

/// What kind of refusal it is. The codes are part of the wire contract: their meaning never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not parseable; a bad id, name or time.
    Malformed,
    /// Not allowed, or nothing of yours, whether it exists or not.
    Unauthorized,
    /// The same key with other bytes.
    Conflict,
    /// Over a limit.
    TooLarge,
    /// Against the pool's rules.
    Rejected,
    /// Length or SHA-256 differ from what was declared.
    Mismatch,
    /// Too fast or too many: slow down.
    Quota,
    /// Another attempt holds the round, or the round has ended.
    Stale,
    /// No such round, version, upload or batch in the pool.
    NotFound,
    /// Storage or disk is away: retry.
    Unavailable,
}

impl Code {
    /// Every code, in the order of the table in docs/protocol.md.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::Conflict,
        Self::TooLarge,
        Self::Rejected,
        Self::Mismatch,
        Self::Quota,
        Self::Stale,
        Self::NotFound,
        Self::Unavailable,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Rejected => "rejected",
            Self::Mismatch => "mismatch",
            Self::Quota => "quota",
            Self::Stale => "stale",
            Self::NotFound => "not_found",
            Self::Unavailable => "unavailable",
        }
    }

    /// The MQTT 5 reason code of a PUBACK, PUBREC or SUBACK (OASIS MQTT 5, 2.4). A temporary refusal of a PUBLISH
    /// is never acknowledged: the connection closes instead, see [`Code::is_temporary`].
    pub fn mqtt5(self) -> u8 {
        match self {
            Self::Malformed | Self::Mismatch => 0x99,
            Self::Unauthorized => 0x87,
            Self::Conflict | Self::Rejected | Self::Stale | Self::NotFound => 0x83,
            Self::TooLarge | Self::Quota => 0x97,
            Self::Unavailable => 0x89,
        }
    }

    /// The HTTP status.
    pub fn http(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Unauthorized => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Stale => 409,
            Self::TooLarge => 413,
            Self::Rejected | Self::Mismatch => 422,
            Self::Quota => 429,
            Self::Unavailable => 503,
        }
    }

    /// Whether the same request can succeed later without a change by the client.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Quota | Self::Unavailable)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal as the client sees it: what happened, to which thing, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    pub code: Code,
    /// What happened, to which thing.
    pub message: String,
    /// What would have been right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The limit that was met, in its own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Milliseconds after which a retry can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// What tokens begin with: of members, of admins, to join.
pub const TOKEN_PREFIXES: [&str; 3] = ["mpd_", "mpa_", "mpj_"];
/// Characters after that from which on it is taken for a token: those that Millpond makes have 43.
const TOKEN_MIN: usize = 28;

/// A text whose tokens, if there are any, are cut off behind their prefix: many a message says what did not read, and whoever
/// has put a token there does not get it shown, nor into a log.
fn without_tokens(text: String) -> String {
    if !TOKEN_PREFIXES.iter().any(|prefix| text.contains(prefix)) {
        return text;
    }
    TOKEN_PREFIXES.iter().fold(text, |text, prefix| {
        let mut pieces = text.split(prefix);
        let first = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(first, |shown, piece| {
            let rest =
                piece.trim_start_matches(|char: char| char.is_ascii_alphanumeric() || "-_".contains(char));
            let (token, rest) = piece.split_at(piece.len() - rest.len());
            shown + prefix + if token.len() < TOKEN_MIN { token } else { "…" } + rest
        })
    })
}

impl Refusal {
    /// A refusal without hint, limit or delay.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = without_tokens(message.into());
        Self { code, message, hint: None, limit: None, retry_after_ms: None }
    }

    /// Adds what would have been right.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(without_tokens(hint.into()));
        self
    }

    /// Adds the limit that was met.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Adds when a retry can help.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Storage or disk is away.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message).retry_after_ms(1_000)
    }
}

impl From<BadName> for Refusal {
    fn from(bad: BadName) -> Self {
        Self::new(Code::Malformed, bad.to_string())
    }
}

impl From<BadTime> for Refusal {
    fn from(bad: BadTime) -> Self {
        Self::new(Code::Malformed, bad.to_string())
    }
}

/// The JSON body of every error, over MQTT and HTTP alike: `{id?, error: {code, message, …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The ask's id, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub error: Refusal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_every_code_is_the_same_in_json_and_in_text() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{}\"", code.as_str()));
        }
    }

    #[test]
    fn absent_parts_do_not_appear_in_json() {
        let body = ErrorBody { id: None, error: Refusal::new(Code::Stale, "round 3 is held by attempt 2") };
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            r#"{"error":{"code":"stale","message":"round 3 is held by attempt 2"}}"#
        );
    }

    #[test]
    fn a_message_shows_no_token_that_somebody_has_put_in_the_wrong_place() {
        let token = "pt7f7zwk2e-jZk0-9TW8ftkw4QAYWw7oLg76yNy6OS8";
        for prefix in TOKEN_PREFIXES {
            let said = format!("unknown variant `{prefix}{token}`, expected `mpd_x`; {prefix}{token}");
            let shown = format!("unknown variant `{prefix}…`, expected `mpd_x`; {prefix}…");
            let refusal = Refusal::new(Code::Malformed, said.clone()).hint(said);
            assert_eq!((refusal.message, refusal.hint), (shown.clone(), Some(shown)));
        }
    }
}
