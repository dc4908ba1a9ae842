//! The XML of S3, as far as this client reads and writes it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Fault};
use crate::multipart::Part;
use crate::presign::checksum_header;

/// What storage says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    /// Where the bucket is, if it is elsewhere.
    pub(crate) region: Option<String>,
    /// What host to call instead.
    pub(crate) endpoint: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    pub(crate) upload_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Page {
    #[serde(default)]
    pub(crate) is_truncated: bool,
    #[serde(rename = "Part", default)]
    pub(crate) parts: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    pub(crate) part_number: u16,
    pub(crate) size: u64,
    /// RFC 3339, so that later ones are greater.
    #[serde(default)]
    pub(crate) last_modified: String,
    #[serde(rename = "ETag")]
    pub(crate) etag: String,
    #[serde(rename = "ChecksumSHA256")]
    pub(crate) sha256: Option<String>,
}

/// A page of ListObjectsV2.
#[derive(Debug, Deserialize)]
pub(crate) struct Bucket {
    #[serde(rename = "Contents", default)]
    pub(crate) objects: Vec<Object>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Object {
    pub(crate) key: String,
    pub(crate) size: u64,
}

/// A page of ListMultipartUploads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Begun {
    #[serde(default)]
    pub(crate) is_truncated: bool,
    #[serde(default)]
    pub(crate) next_key_marker: String,
    #[serde(default)]
    pub(crate) next_upload_id_marker: String,
    #[serde(rename = "Upload", default)]
    pub(crate) uploads: Vec<BegunOne>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct BegunOne {
    pub(crate) key: String,
    pub(crate) upload_id: String,
}

#[derive(Serialize)]
#[serde(rename = "CompleteMultipartUpload")]
struct Complete<'a> {
    #[serde(rename = "@xmlns")]
    xmlns: &'static str,
    #[serde(rename = "Part")]
    parts: Vec<Completed<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Completed<'a> {
    part_number: u16,
    #[serde(rename = "ETag")]
    etag: &'a str,
    #[serde(rename = "ChecksumSHA256", skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// The refusal that `body` is, also where it came with a status of success.
pub(crate) fn refusal(body: &str) -> Option<Refusal> {
    let start = body.find("<Error")?;
    quick_xml::de::from_str(&body[start..]).ok().filter(|refusal: &Refusal| !refusal.code.is_empty())
}

pub(crate) fn parse<T: DeserializeOwned>(body: &str) -> Result<T, Error> {
    quick_xml::de::from_str(body)
        .map_err(|error| Error::refused(Fault::Endpoint, format!("an answer cannot be read: {error}")))
}

/// The body of CompleteMultipartUpload.
pub(crate) fn complete(parts: &[Part]) -> Result<String, Error> {
    let parts = parts.iter().map(|part| Completed {
        part_number: part.n,
        etag: &part.etag,
        sha256: part.sha256.map(checksum_header),
    });
    let body = Complete { xmlns: "http://s3.amazonaws.com/doc/2006-03-01/", parts: parts.collect() };
    quick_xml::se::to_string(&body)
        .map_err(|error| Error::refused(Fault::Endpoint, format!("an etag cannot be repeated: {error}")))
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Sha256;

    use super::*;

    #[test]
    fn a_refusal_is_found_whatever_surrounds_it() {
        let body = "<?xml version=\"1.0\"?>\n<Error xmlns=\"x\"><Code>SlowDown</Code><Message>a &amp; b</Message>\
                    <RequestId>1</RequestId></Error>";
        let refusal = refusal(body).unwrap();
        assert_eq!((&*refusal.code, &*refusal.message), ("SlowDown", "a & b"));
        for other in ["", "<html><Error</html>", "<CompleteMultipartUploadResult/>"] {
            assert!(super::refusal(other).is_none(), "{other}");
        }
    }

    #[test]
    fn what_storage_called_a_part_is_repeated_as_it_came() {
        let part = |n, etag: &str, sha256| Part { n, size: 1, sha256, etag: etag.into() };
        let body = complete(&[part(1, "\"a&b\"", None), part(2, "c", Some(Sha256::of(b"abc")))]).unwrap();
        assert_eq!(
            body,
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Part><PartNumber>1</PartNumber><ETag>\"a&amp;b\"</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>c</ETag>\
             <ChecksumSHA256>ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=</ChecksumSHA256></Part>\
             </CompleteMultipartUpload>"
        );
    }

    #[test]
    fn a_page_of_parts_is_read_with_and_without_checksums() {
        let page: Page = parse(
            "<ListPartsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket>\
             <Part><PartNumber>2</PartNumber><ETag>&quot;x&quot;</ETag><Size>5</Size></Part>\
             <Part><PartNumber>3</PartNumber><ETag>y</ETag><Size>6</Size><ChecksumSHA256>z</ChecksumSHA256></Part>\
             <IsTruncated>true</IsTruncated></ListPartsResult>",
        )
        .unwrap();
        assert!(page.is_truncated);
        assert_eq!((page.parts[0].part_number, page.parts[0].size, &*page.parts[0].etag), (2, 5, "\"x\""));
        assert_eq!(page.parts[1].sha256.as_deref(), Some("z"));
    }
}
