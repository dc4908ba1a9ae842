//! Logs: `tracing` events as one JSON object a line with the field names of the Elastic Common Schema, or as text.
//!
//! Names of fields: `@timestamp`, `log.level`, `log.logger`, `message`, `ecs.version`, `service.name`; the field `error` of an event
//! becomes `error.message`; a field whose name has a dot is an ECS name already and stays as it is; every other field is
//! `millpond.NAME`. Fields of the spans around an event are given with it, the innermost winning. No field ever holds a
//! token, a URL with a signature, or a payload.

use std::fmt;
use std::io::{IsTerminal as _, Write};
use std::time::SystemTime;

use millpond_protocol::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as text};

use crate::config::{Log, LogFormat};

/// The version of the Elastic Common Schema that the field names are from.
const ECS_VERSION: &str = "8.17";

/// Sends the process's logs to standard error. A second call does nothing, so that tests may start several servers.
pub fn init(log: &Log) {
    // s3s logs whole requests, with the signatures in them: who wants that has to name one of its modules.
    let quiet = "s3s=off".parse().expect("the directive is a constant");
    let filter = EnvFilter::builder().parse_lossy(&log.filter).add_directive(quiet);
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let outcome = if json {
        registry.with(Ecs(std::io::stderr)).try_init()
    } else {
        registry
            .with(text::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()))
            .try_init()
    };
    // The only error is that there is a subscriber already.
    drop(outcome);
}

/// Whether `log.filter` can be understood, in words if not.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| format!("{filter:?} is no filter: {error}"))
}

/// Writes each event as a JSON line to what the function opens.
struct Ecs<F>(F);

impl<S, F, W> Layer<S> for Ecs<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: Fn() -> W + 'static,
    W: Write,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(outer)) = span.extensions().get::<Fields>() {
                fields.0.extend(outer.clone());
            }
        }
        event.record(&mut fields);
        let mut line = line(event, SystemTime::now(), fields).to_string();
        line.push('\n');
        // Where standard error is gone there is nobody left to tell.
        let _ = (self.0)().write_all(line.as_bytes());
    }
}

fn line(event: &Event<'_>, now: SystemTime, Fields(mut fields): Fields) -> Value {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| line.insert(key.to_owned(), value);
    put("@timestamp", Timestamp::EPOCH.after(since_epoch).to_string().into());
    put("log.level", event.metadata().level().as_str().to_lowercase().into());
    put("message", fields.remove("message").unwrap_or_default());
    put("ecs.version", ECS_VERSION.into());
    put("service.name", "millpond".into());
    put("log.logger", event.metadata().target().into());
    line.extend(fields);
    line.into()
}

/// The fields of an event or a span under their names in the log.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let key = match field.name() {
            "message" => "message".to_owned(),
            "error" => "error.message".to_owned(),
            name if name.contains('.') => name.to_owned(),
            name => format!("millpond.{name}"),
        };
        self.0.insert(key, value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        self.put(field, text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> Value {
        let buffer = Buffer::default();
        let opened = buffer.clone();
        let subscriber = tracing_subscriber::registry().with(Ecs(move || opened.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object_with_ecs_names() {
        let io = std::io::Error::other("disk\nfull");
        let line = logged(|| {
            tracing::warn!(
                error = &io as &dyn std::error::Error,
                pool = "p",
                bytes = 7_u64,
                client.address = "::1",
                "no room"
            );
        });
        assert_eq!(line["message"], "no room");
        assert_eq!(line["log.level"], "warn");
        assert_eq!(line["error.message"], "disk\nfull");
        assert_eq!(line["millpond.pool"], "p");
        assert_eq!(line["millpond.bytes"], 7);
        assert_eq!(line["client.address"], "::1");
        assert_eq!(line["service.name"], "millpond");
        assert!(line["log.logger"].as_str().unwrap().starts_with("millpond"));
        assert!(line["@timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    #[test]
    fn fields_of_the_spans_around_it_come_with_an_event() {
        let line = logged(|| {
            let outer = tracing::info_span!("round", pool = "p", round = tracing::field::Empty);
            outer.record("round", 3_u64);
            outer.in_scope(|| {
                tracing::info_span!("attempt", attempt = 2_u64).in_scope(|| tracing::info!("leased"))
            });
        });
        assert_eq!((&line["millpond.round"], &line["millpond.attempt"]), (&3.into(), &2.into()));
        assert_eq!(line["millpond.pool"], "p");
    }
}
