//! What concerns the bucket, or many of its objects.

use std::sync::Arc;

use s3s::dto::{
    Bucket, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, Error, ListBucketsInput,
    ListBucketsOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::super::errors::said;
use super::{Service, check_key};
use crate::limits::embedded as limits;

impl Service {
    /// The one bucket.
    pub(super) fn buckets(
        &self,
        request: &S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.in_region(request)?;
        let name = Some(self.config.bucket.clone());
        let creation_date = Some(std::time::SystemTime::UNIX_EPOCH.into());
        let bucket = Bucket { name, creation_date, ..Default::default() };
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(vec![bucket]), ..Default::default() }))
    }

    /// Removes many objects in one transaction; those that have no good key are named in the answer.
    pub(super) async fn delete_many(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let delete = request.input.delete;
        if delete.objects.is_empty() || delete.objects.len() > limits::PAGE {
            let message = format!("One request removes up to {} objects.", limits::PAGE);
            return Err(said(S3ErrorCode::MalformedXML, message));
        }
        let (mut keys, mut errors) = (Vec::new(), Vec::new());
        for object in delete.objects {
            let conditional =
                object.e_tag.is_some() || object.size.is_some() || object.last_modified_time.is_some();
            let refused = match check_key(&object.key) {
                Err(error) => Some(error),
                Ok(()) if conditional || object.version_id.is_some() => {
                    let message = "Deleting knows no conditions and no versions here.";
                    Some(said(S3ErrorCode::NotImplemented, message))
                }
                Ok(()) => None,
            };
            match refused {
                None => keys.push(object.key),
                Some(error) => errors.push(Error {
                    code: Some(error.code().as_str().to_owned()),
                    message: error.message().map(str::to_owned),
                    key: Some(object.key),
                    version_id: None,
                }),
            }
        }
        Arc::clone(&self.store).delete(keys.clone()).await?;
        let deleted = keys.into_iter().map(|key| DeletedObject { key: Some(key), ..Default::default() });
        let quiet = delete.quiet.unwrap_or(false);
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then(|| deleted.collect()),
            errors: (!errors.is_empty()).then_some(errors),
            ..Default::default()
        }))
    }
}
