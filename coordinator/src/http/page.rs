//! Pages of lists: newest first, a number as cursor.

use millpond_protocol::{Code, Refusal};
use serde::Deserialize;

/// Entries of a page unless the request says so.
const DEFAULT: usize = 50;
/// Entries that a request may ask for.
const MAX: usize = 1_000;

/// The part of a query that says which page.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Page {
    limit: Option<String>,
    cursor: Option<String>,
}

impl Page {
    pub(super) fn new(limit: Option<String>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// Entries in the page.
    ///
    /// # Errors
    /// `malformed`.
    pub(super) fn limit(&self) -> Result<usize, Refusal> {
        let Some(text) = &self.limit else { return Ok(DEFAULT) };
        let limit = text.parse().ok().filter(|limit| (1..=MAX).contains(limit));
        limit.ok_or_else(|| {
            Refusal::new(Code::Malformed, "limit is a number from 1 to 1000").limit(MAX as u64)
        })
    }

    /// Only entries with numbers below this one.
    ///
    /// # Errors
    /// `malformed`.
    pub(super) fn before(&self) -> Result<Option<u64>, Refusal> {
        let Some(text) = &self.cursor else { return Ok(None) };
        let number = text.parse::<u64>().ok().filter(|number| i64::try_from(*number).is_ok());
        number
            .map(Some)
            .ok_or_else(|| Refusal::new(Code::Malformed, "the cursor is not one that an answer gave you"))
    }
}

/// The cursor of the next page: there may be one if this page is full.
pub(super) fn next<T>(page: &[T], limit: usize, number: impl FnOnce(&T) -> u64) -> Option<String> {
    page.last().filter(|_| page.len() >= limit).map(|last| number(last).to_string())
}
