//! What Millpond relies on, of whatever storage: every case runs against each server that the tests know.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    unused_macros,
    unreachable_pub,
    reason = "a test that cannot go on fails"
)]

mod objects;
mod parts;
mod urls;

use millpond_storage::{ObjectKey, Storage, StorageConfig};

pub use objects::*;
pub use parts::*;
pub use urls::*;

/// A storage to try things on.
pub struct Place {
    pub config: StorageConfig,
    pub storage: Storage,
    /// For those who have URLs: knows the way to them.
    pub http: reqwest::Client,
}

impl Place {
    pub fn new(config: StorageConfig) -> Self {
        let mut http = reqwest::Client::builder().no_proxy();
        if let Some(proxy) = &config.proxy {
            http = http.proxy(reqwest::Proxy::all(proxy.as_str()).unwrap());
        }
        Self { storage: Storage::new(&config).unwrap(), config, http: http.build().unwrap() }
    }
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
            a_url_reads_its_object,
            a_url_for_writing_takes_the_declared_bytes_and_no_others,
            changed_headers_or_urls_are_refused,
            a_hash_goes_on_where_the_connection_broke,
            what_comes_after_a_key_is_listed_in_order_with_sizes_page_by_page,
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
            a_part_that_comes_again_is_one_part,
            completing_what_is_completed_is_success,
            an_aborted_upload_is_unknown_and_leaves_nothing,
            parts_that_storage_does_not_have_make_no_object,
            a_url_for_a_part_takes_the_declared_bytes_and_no_others,
            a_writer_makes_one_object_of_any_size,
            a_writer_that_aborts_leaves_nothing,
        }
    };
}
