//! Messages with presigned URLs, as they are shown to people: a signature opens what it is for, so none gets into a log.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// What a signature comes after.
const SIGNATURE: &str = "X-Amz-Signature=";

/// Makes `Debug` show a message as its JSON, with no signature of a URL in it.
macro_rules! shown_unsigned {
    ($($message:ty),*) => {
        $(impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::message::unsigned::show(self, f)
            }
        })*
    };
}
pub(crate) use shown_unsigned;

pub(crate) fn show(message: &impl Serialize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut shown = serde_json::to_value(message).map_err(|_| fmt::Error)?;
    cut(&mut shown);
    write!(f, "{shown}")
}

fn cut(value: &mut Value) {
    match value {
        Value::String(text) => *text = unsigned(text),
        Value::Array(values) => values.iter_mut().for_each(cut),
        Value::Object(values) => values.values_mut().for_each(cut),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text whose presigned URLs, if there are any, have lost their signature.
pub fn unsigned(text: &str) -> String {
    let mut pieces = text.split(SIGNATURE);
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |shown, piece| {
        let rest = piece.trim_start_matches(|char: char| char.is_ascii_hexdigit());
        shown + SIGNATURE + "…" + rest
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use crate::message::answer::PutTo;

    #[test]
    fn no_signature_is_shown() {
        let url = "https://files.example/b/k?X-Amz-Date=20260601T000000Z&X-Amz-Signature=0123abcd";
        let put = PutTo {
            url: url.into(),
            headers: [("content-length".into(), "1".into())].into(),
            url_expires: crate::Timestamp::EPOCH,
            curl: Some(format!("curl -T x '{url}&x-holder=7' '{url}'")),
        };
        let shown = format!("{put:?}");
        assert!(!shown.contains("0123abcd"), "{shown}");
        assert!(
            shown.contains("/b/k?X-Amz-Date=20260601T000000Z&X-Amz-Signature=…")
                && shown.contains("x-holder=7"),
            "{shown}"
        );
    }
}
