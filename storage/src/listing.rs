//! What is in the bucket. Nothing but a check may ask: what Millpond has stands in its ledger.

use rusty_s3::Method;

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::handle::Storage;
use crate::http::{Request, text};
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

impl Storage {
    /// The next objects whose keys come after this text, in order of their bytes; none: there are no more.
    pub async fn list(&self, after: &str) -> Result<Vec<Listed>, Error> {
        self.call("list", || self.client().list(after)).await
    }
}

impl Client {
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
