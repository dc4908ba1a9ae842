//! What is in the bucket. Nothing but a check may ask: what Millpond has stands in its ledger.

use rusty_s3::Method;

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::handle::Storage;
use crate::http::{Request, text};
use crate::probe::PROBES;
use crate::xml;

/// Objects of one page: an answer of some 200 KB.
const PAGE: &str = "500";

/// An object that storage has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, which may be none of ours.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
}

/// An upload in parts that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The key of the object that it is to be, which may be none of ours.
    pub key: String,
    /// What storage calls it.
    pub id: String,
}

impl Storage {
    /// The uploads in parts that have not ended, those of trials left out: a page of them, those after `last` in storage's
    /// order; and the last one of the page, if there are more.
    pub async fn list_uploads(&self, last: Option<&Begun>) -> Result<(Vec<Begun>, Option<Begun>), Error> {
        self.call("list_uploads", || self.client().list_uploads(last)).await
    }

    /// The next objects whose keys come after this text, in order of their bytes; none: there are no more.
    pub async fn list(&self, after: &str) -> Result<Vec<Listed>, Error> {
        self.call("list", || self.client().list(after)).await
    }
}

impl Client {
    async fn list_uploads(&self, last: Option<&Begun>) -> Result<(Vec<Begun>, Option<Begun>), Error> {
        let mut request = Request::new(Method::Get, "");
        let markers = last.map_or(("", ""), |last| (last.key.as_str(), last.id.as_str()));
        let query = [
            ("uploads", ""),
            ("max-uploads", PAGE),
            ("key-marker", markers.0),
            ("upload-id-marker", markers.1),
        ];
        request.query = if last.is_none() { &query[..2] } else { &query };
        let answer = text(self.http.send(request).await?).await?;
        let page: xml::Begun = xml::parse(&answer)?;
        let next = Begun { key: page.next_key_marker, id: page.next_upload_id_marker };
        // Whoever goes on from it would otherwise go in circles. Not every server lists them in order of their keys.
        if page.is_truncated && (next.key.is_empty() && next.id.is_empty() || last == Some(&next)) {
            return Err(Error::refused(
                Fault::Endpoint,
                "storage does not say where the list of uploads goes on",
            ));
        }
        let uploads = page.uploads.into_iter().map(|upload| Begun { key: upload.key, id: upload.upload_id });
        let uploads = uploads.filter(|upload| !upload.key.starts_with(PROBES)).collect();
        Ok((uploads, page.is_truncated.then_some(next)))
    }

    /// Asks for a listing that matters to nobody: unlike HEAD, it is refused in words.
    pub(crate) async fn list_one(&self) -> Result<(), Error> {
        let mut request = Request::new(Method::Get, "");
        request.query = &[("list-type", "2"), ("max-keys", "1")];
        self.http.send(request).await.map(drop)
    }

    async fn list(&self, after: &str) -> Result<Vec<Listed>, Error> {
        let mut request = Request::new(Method::Get, "");
        let query = [("list-type", "2"), ("max-keys", PAGE), ("start-after", after)];
        request.query = if after.is_empty() { &query[..2] } else { &query };
        let answer = text(self.http.send(request).await?).await?;
        let page: xml::Bucket = xml::parse(&answer)?;
        let objects: Vec<Listed> =
            page.objects.into_iter().map(|object| Listed { key: object.key, size: object.size }).collect();
        // Whoever goes on from the last key would otherwise go in circles.
        let mut last = after;
        for object in &objects {
            if object.key.as_str() <= last {
                return Err(Error::refused(Fault::Endpoint, "objects are not listed in order of their keys"));
            }
            last = &object.key;
        }
        Ok(objects)
    }
}
