//! From entries to messages.

use millpond_protocol::bundle::{self, Bundle};
use millpond_protocol::message::ask;
use millpond_protocol::{BundleId, Refusal, Timestamp, UploadId};

use crate::backoff::random;
use crate::clock::Anchor;
use crate::session::{Properties, Session, SessionError};
use crate::spool::{Document, Entry};

/// What is known of the server's time.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) offset_ms: i64,
    pub(super) anchors: Vec<Anchor>,
    /// The server's time of today.
    pub(super) now: Timestamp,
}

impl Clock {
    /// When the file belongs: as stated, else as captured.
    pub(super) fn event_time(&self, document: &Document) -> Timestamp {
        let about = &document.about;
        about
            .event_time
            .unwrap_or_else(|| about.captured.in_server_time(&self.anchors, self.offset_ms, self.now))
    }
}

/// A file in memory.
pub(super) struct Loaded {
    pub(super) entry: Entry,
    pub(super) document: Document,
    pub(super) bytes: Vec<u8>,
}

/// What a large file is, for its grant.
pub(super) fn put(document: &Document, clock: &Clock) -> ask::Put {
    let about = &document.about;
    ask::Put {
        upload: None,
        round: None,
        attempt: None,
        name: Some(about.name.clone()),
        size: document.size,
        sha256: document.sha256,
        event_time: Some(clock.event_time(document)),
        label: about.label.clone(),
        content_type: about.content_type.clone(),
        // It was read as JSON when it was pushed; what another program wrote there and is none says nothing.
        meta: about.meta.as_deref().and_then(|meta| serde_json::from_str(meta).ok()),
        part_size: None,
        parts: Vec::new(),
        curl: false,
    }
}

/// A message that is ready to be published.
pub(super) enum Message {
    Single(UploadId, Vec<u8>, Properties),
    Bundle(BundleId, Vec<u8>),
}

impl Message {
    /// One file as a PUBLISH of its own.
    pub(super) fn single(file: Loaded, clock: &Clock) -> Self {
        let event_time = clock.event_time(&file.document);
        let Document { about, sha256, .. } = file.document;
        let properties = Properties {
            name: Some(about.name.to_string()),
            event_time: Some(event_time),
            label: about.label.map(|label| label.to_string()),
            sha256: Some(sha256),
            meta: about.meta,
            content_type: about.content_type,
        };
        Self::Single(about.upload, file.bytes, properties)
    }

    /// Several files as a bundle, perhaps with the statement that there is nothing more up to a time.
    pub(super) fn bundle(
        files: &[Loaded],
        complete: Option<Timestamp>,
        clock: &Clock,
    ) -> Result<Self, Refusal> {
        let entries = files.iter().map(|file| {
            let about = &file.document.about;
            bundle::Entry {
                upload: about.upload.as_str(),
                event_time_ms: clock.event_time(&file.document).as_millis(),
                name: about.name.as_str(),
                content_type: about.content_type.as_deref(),
                label: about.label.as_ref().map(millpond_protocol::Label::as_str),
                sha256: Some(file.document.sha256.0),
                meta: about.meta.as_deref(),
                data: &file.bytes,
            }
        });
        let bundle = Bundle {
            clock_offset_ms: Some(clock.offset_ms),
            complete_through_ms: complete.map(Timestamp::as_millis),
            entries: entries.collect(),
        };
        let id = format!("b-{:016x}", random()).parse()?;
        Ok(Self::Bundle(id, bundle::encode(&bundle)?))
    }

    /// Bytes of the payload.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Single(_, bytes, _) | Self::Bundle(_, bytes) => bytes.len(),
        }
    }

    /// Publishes it and waits for the acknowledgement.
    pub(super) async fn send(self, session: &Session) -> Result<(), SessionError> {
        match self {
            Self::Single(id, bytes, properties) => session.upload(&id, bytes, properties).await,
            Self::Bundle(id, bytes) => session.bundle(&id, bytes).await,
        }
    }
}
