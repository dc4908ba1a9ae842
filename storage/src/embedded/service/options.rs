//! Options of requests that mean something, and that nobody here heeds: they are refused, never ignored. Who asks for the
//! deletion of one version must not lose the current object, nor who asks for encryption have bytes lie in the clear.

use s3s::dto::{
    CreateMultipartUploadInput, DeleteObjectInput, GetObjectInput, HeadObjectInput, PutObjectInput,
    UploadPartInput,
};
use s3s::{S3ErrorCode, S3Result};

use super::super::errors::said;
use super::{CONTENT_DISPOSITION, CONTENT_TYPE};

/// A request that can have such options.
pub(super) trait Options {
    /// What the first of them asks for.
    fn unheeded(&self) -> Option<&'static str>;
}

/// Refuses a request that asks for what is not offered.
pub(super) fn heeded(request: &impl Options) -> S3Result<()> {
    match request.unheeded() {
        None => Ok(()),
        Some(what) => Err(said(S3ErrorCode::NotImplemented, format!("This storage knows no {what}."))),
    }
}

fn first<const N: usize>(asked: [(bool, &'static str); N]) -> Option<&'static str> {
    asked.into_iter().find(|(is_asked, _)| *is_asked).map(|(_, what)| what)
}

/// Whether a value is there that does not say what holds anyway.
fn other<T: AsRef<str>>(value: Option<T>, here: &[&str]) -> bool {
    value.is_some_and(|value| !here.contains(&value.as_ref()))
}

/// Whether a customer's own key is named.
macro_rules! has_own_key {
    ($input:expr) => {
        $input.sse_customer_algorithm.is_some()
            || $input.sse_customer_key.is_some()
            || $input.sse_customer_key_md5.is_some()
    };
}

/// Of a request that begins an object.
macro_rules! of_a_new_object {
    ($input:ty) => {
        impl Options for $input {
            fn unheeded(&self) -> Option<&'static str> {
                let encrypted = has_own_key!(self)
                    || self.server_side_encryption.is_some()
                    || self.ssekms_key_id.is_some()
                    || self.ssekms_encryption_context.is_some();
                let locked = self.object_lock_mode.is_some()
                    || self.object_lock_legal_hold_status.is_some()
                    || self.object_lock_retain_until_date.is_some();
                let granted = self.grant_full_control.is_some()
                    || self.grant_read.is_some()
                    || self.grant_read_acp.is_some()
                    || self.grant_write_acp.is_some();
                // The owner of the bucket is the only one there is.
                let acl = other(
                    self.acl.as_ref().map(|acl| acl.as_str()),
                    &["private", "bucket-owner-full-control", "bucket-owner-read"],
                );
                let class = other(self.storage_class.as_ref().map(|class| class.as_str()), &["STANDARD"]);
                first([
                    (encrypted, "encryption"),
                    (locked, "object lock"),
                    (self.tagging.is_some(), "tags"),
                    (acl || granted, "access control lists"),
                    (class, "class of storage but STANDARD"),
                    (self.website_redirect_location.is_some(), "redirects"),
                ])
            }
        }
    };
}
of_a_new_object!(PutObjectInput);
of_a_new_object!(CreateMultipartUploadInput);

impl Options for UploadPartInput {
    fn unheeded(&self) -> Option<&'static str> {
        first([(has_own_key!(self), "encryption")])
    }
}

/// Of a request that reads an object. What an answer says anyway may be asked for.
macro_rules! of_a_reader {
    ($input:ty) => {
        impl Options for $input {
            fn unheeded(&self) -> Option<&'static str> {
                let headers = other(self.response_content_type.as_ref(), &[CONTENT_TYPE])
                    || other(self.response_content_disposition.as_ref(), &[CONTENT_DISPOSITION])
                    || self.response_cache_control.is_some()
                    || self.response_content_encoding.is_some()
                    || self.response_content_language.is_some()
                    || self.response_expires.is_some();
                first([
                    (self.version_id.is_some(), "versions"),
                    (self.part_number.is_some(), "parts one by one: ask for a range"),
                    (has_own_key!(self), "encryption"),
                    (headers, "choice of an answer's headers"),
                ])
            }
        }
    };
}
of_a_reader!(GetObjectInput);
of_a_reader!(HeadObjectInput);

impl Options for DeleteObjectInput {
    fn unheeded(&self) -> Option<&'static str> {
        let conditional = self.if_match.is_some()
            || self.if_match_size.is_some()
            || self.if_match_last_modified_time.is_some();
        first([(self.version_id.is_some(), "versions"), (conditional, "conditions of a deletion")])
    }
}
