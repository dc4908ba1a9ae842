//! State messages: what the pool's topics show whoever subscribes.

use serde::{Deserialize, Serialize};

use crate::hash::Sha256;
use crate::ids::{FileName, Label, PoolName};
use crate::message::unsigned::shown_unsigned;
use crate::time::Timestamp;

shown_unsigned!(Pointer);

/// The payload of `mp/{p}/result`: where the newest result is. Fetch it within `spread_s` seconds at a random moment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    pub version: u64,
    pub batch: u64,
    pub round: u64,
    /// The version that a rollback published again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    pub url: String,
    /// After this the URL answers 403: ask `latest` for a fresh one.
    pub url_expires: Timestamp,
    pub spread_s: u64,
}

/// The payload of `mp/{p}/pool`: what a member needs to know of its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub pool: PoolName,
    /// Always 1 for this protocol.
    pub protocol: u32,
    /// `window`, `label` or `count`.
    pub grouping: String,
    /// Length of a window in seconds, where windows group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u64>,
    /// The window of `server_time`; absent where labels or counts group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Window>,
    /// `next` or `reject`.
    pub late: String,
    pub limits: CardLimits,
    /// Host and port of the URLs that the pool hands out.
    pub storage_host: String,
    pub server_time: Timestamp,
}

/// A half-open interval of event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First instant inside.
    pub from: Timestamp,
    /// First instant after.
    pub to: Timestamp,
}

/// The limits that a client must keep, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardLimits {
    pub publish_max: u64,
    pub bundle_max: u64,
    /// Largest file of the pool by whatever way.
    pub upload_max: u64,
    pub sha256_required: bool,
}

/// The payload of `mp/{p}/offer`: the oldest round that waits for a processor. A hint: ownership comes from `claim`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub round: u64,
    pub batch: u64,
    /// Uploads in the manifest.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why the batch was sealed.
    pub cause: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// Attempts that were spent on it.
    pub attempts: u32,
}
