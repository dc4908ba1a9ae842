//! What Millpond and its clients rely on, of whatever storage: every case runs against each server that the tests know.
//!
//! What S3 says is in the cases. Where a server says something else, `differs` says so, with the reason.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    unused_macros,
    unreachable_pub,
    reason = "a test that cannot go on fails"
)]

mod browsers;
pub mod differs;
mod lists;
mod objects;
mod parts;
mod parts_refused;
mod public;
mod refused;
mod signed;
mod urls;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use differs::Differs;
use millpond_protocol::Sha256;
use millpond_storage::{ObjectKey, Storage, StorageConfig};
use reqwest::{Method, RequestBuilder, Response};

pub use browsers::*;
pub use lists::*;
pub use objects::*;
pub use parts::*;
pub use parts_refused::*;
pub use public::*;
pub use refused::*;
pub use signed::*;
pub use urls::*;

use crate::common::{MINUTE, Signer, files, http, now, refusal, settles};

/// The page of another origin that may use URLs.
pub const PAGE: &str = "https://app.example.org"; // as `SeaweedFs::PAGE`

/// A storage to try things on.
pub struct Place {
    pub config: StorageConfig,
    pub storage: Storage,
    /// For those who have URLs: knows the way to them.
    pub http: reqwest::Client,
    /// Where it keeps files, if that is known; then they can be counted.
    directory: Option<PathBuf>,
    differs: &'static [Differs],
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// Claims that did not hold.
    broken: Vec<String>,
    /// Differences that were met.
    met: BTreeSet<&'static str>,
}

impl Place {
    /// The embedded server, which keeps its files there and differs in nothing.
    pub fn embedded(config: StorageConfig, directory: &Path) -> Self {
        Self::new(config, Some(directory.to_owned()), &[])
    }

    /// SeaweedFS.
    pub fn seaweedfs(config: StorageConfig) -> Self {
        Self::new(config, None, differs::SEAWEEDFS)
    }

    fn new(config: StorageConfig, directory: Option<PathBuf>, differs: &'static [Differs]) -> Self {
        let mut http = reqwest::Client::builder().no_proxy();
        if let Some(proxy) = &config.proxy {
            http = http.proxy(reqwest::Proxy::all(proxy.as_str()).unwrap());
        }
        let (storage, http, found) =
            (Storage::new(&config).unwrap(), http.build().unwrap(), Mutex::default());
        Self { storage, config, http, directory, differs, found }
    }

    /// Notes whether it says there what S3 says, or what is known to differ.
    #[track_caller]
    pub fn says(&self, claim: &str, said: impl Display, s3: impl Display) {
        let (said, s3) = (said.to_string(), s3.to_string());
        let known = self.differs.iter().find(|differs| differs.claim == claim);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.met.extend(known.map(|differs| differs.claim));
        let expected = known.map_or(s3, |differs| differs.says.to_owned());
        if said != expected {
            let line = std::panic::Location::caller().line();
            found.broken.push(format!("{claim}: {said}, not {expected} (line {line})"));
        }
    }

    /// Fails if anything was said that was not expected; else which differences were met.
    pub fn end(self) -> BTreeSet<&'static str> {
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(found.broken.is_empty(), "{:#?}", found.broken);
        found.met
    }

    /// Waits until it has so many files, where they can be counted: no trace is left of what was refused.
    pub async fn keeps(&self, count: usize) {
        if let Some(directory) = &self.directory {
            let there = || files(directory);
            settles(|| there().len() == count, || format!("{count} files, not {:?}", there())).await;
        }
    }

    /// Whether another server differs in that.
    pub fn differs(&self, claim: &str) -> bool {
        self.differs.iter().any(|differs| differs.claim == claim)
    }

    /// Signs what the client of the program does not send.
    pub fn signer(&self) -> Signer {
        let mut bucket = self.config.endpoint.clone();
        if self.config.path_style {
            bucket = bucket.join(&format!("{}/", self.config.bucket)).unwrap();
        } else {
            let host = format!("{}.{}", self.config.bucket, bucket.host_str().unwrap());
            bucket.set_host(Some(&host)).unwrap();
        }
        Signer { bucket, http: self.http.clone() }
    }

    /// A request that is signed in its URL, see [`Signer::request`].
    pub fn signed(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, String)],
    ) -> RequestBuilder {
        self.signer().request(method, path, query, headers)
    }

    pub fn get_url(&self, key: &ObjectKey) -> String {
        self.storage.presign_get(key, MINUTE, now()).url
    }

    /// A PUT of `body` to a URL that was signed for `declared`.
    pub fn put_request(
        &self,
        key: &ObjectKey,
        declared: &[u8],
        body: impl Into<reqwest::Body>,
    ) -> RequestBuilder {
        let signed =
            self.storage.presign_put(key, declared.len() as u64, Sha256::of(declared), MINUTE, now());
        let headers = signed.headers.iter();
        headers.fold(self.http.put(signed.url), |put, (name, value)| put.header(*name, value)).body(body)
    }

    pub async fn put(&self, key: &ObjectKey, body: &[u8]) {
        self.storage.put(key, Bytes::copy_from_slice(body), Sha256::of(body)).await.unwrap();
    }
}

/// The status of an answer and, if it is a refusal, the code of S3.
pub async fn outcome(answer: Response) -> String {
    let success = answer.status().is_success();
    let (status, code) = refusal(answer).await;
    if success || code.is_empty() { status.to_string() } else { format!("{status} {code}") }
}

/// A key that no other case uses.
pub fn fresh(name: &str) -> ObjectKey {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("contract/{name}-{:016x}", u64::from_le_bytes(random)).parse().unwrap()
}

/// Calls `$run` with the name of every case about whole objects.
#[macro_export]
macro_rules! object_cases {
    ($run:ident) => {
        $run! {
            what_is_put_comes_back_until_it_is_deleted,
            a_range_streams_exactly_its_bytes,
            an_object_larger_than_expected_is_not_read,
            other_bytes_than_declared_are_not_stored_and_the_old_ones_stay,
            an_object_is_hashed_as_it_lies_there,
            a_hash_goes_on_where_the_connection_broke,
            attempts_that_bring_nothing_end_a_hash,
            an_object_that_is_replaced_meanwhile_is_not_hashed_half_and_half,
            concurrent_uploads_to_one_key_leave_one_whole_object,
            an_upload_that_breaks_off_leaves_the_old_object,
            what_a_client_keeps_with_an_object_comes_back,
            what_comes_after_a_key_is_listed_in_order_with_sizes_page_by_page,
            keys_are_in_order_of_their_bytes,
            a_listing_is_in_order_in_pages_and_by_prefix,
            both_forms_of_a_listing_page_through_keys_of_any_kind,
            many_objects_go_in_one_request,
        }
    };
}

/// Calls `$run` with the name of every case about URLs, and requests that are refused.
#[macro_export]
macro_rules! url_cases {
    ($run:ident) => {
        $run! {
            a_url_reads_its_object_and_says_how_to_treat_it,
            ranges_are_those_of_http,
            conditions_spare_a_download_and_protect_a_continued_one,
            a_url_for_writing_takes_the_declared_bytes_and_no_others,
            changed_headers_or_urls_are_refused,
            a_put_may_call_its_body_what_it_likes,
            a_client_that_asks_before_it_sends_is_told_before_it_sends,
            of_two_that_race_to_be_the_first_one_is_and_whoever_names_the_old_object_replaces_that_alone,
            what_is_to_replace_nothing_is_not_found,
            a_session_token_is_part_of_what_is_signed,
            a_put_that_is_not_what_was_signed_or_declared_gets_its_code_and_changes_nothing,
            a_body_that_its_header_or_its_chunks_do_not_vouch_for_gets_its_code_and_is_not_kept,
            a_chunk_without_a_signature_has_any_size,
            a_checksum_behind_the_body_is_compared_too,
            a_clock_that_is_wrong_by_more_than_15_minutes_is_told_so,
            a_page_that_is_listed_may_ask_send_and_read,
            another_page_is_told_nothing_and_needs_a_signature_like_all,
            a_check_finds_nothing_wrong,
            a_check_says_what_is_wrong_with_the_public_url,
        }
    };
}

/// Calls `$run` with the name of every case about objects in parts.
#[macro_export]
macro_rules! part_cases {
    ($run:ident) => {
        $run! {
            parts_become_one_object_whoever_sent_them,
            parts_are_listed_page_by_page,
            uploads_that_have_not_ended_are_listed_page_by_page,
            parts_and_uploads_are_listed_in_pages_of_any_size,
            a_part_that_comes_again_is_one_part,
            completing_what_is_completed_is_success,
            an_aborted_upload_is_unknown_and_leaves_nothing,
            an_upload_that_is_gone_is_not_found_by_any_request,
            parts_that_storage_does_not_have_make_no_object,
            parts_that_do_not_fit_are_refused_and_the_old_object_stays,
            a_part_is_the_declared_bytes_or_none,
            a_url_for_a_part_takes_the_declared_bytes_and_no_others,
            a_writer_makes_one_object_of_any_size,
            a_writer_that_aborts_leaves_nothing,
        }
    };
}
