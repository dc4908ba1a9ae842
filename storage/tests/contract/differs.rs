//! Where SeaweedFS answers otherwise than S3 does: a difference is expected like everything else, so that it is noticed when
//! it goes, and that a new one fails.

/// A claim of a case, what SeaweedFS says there, and why that does no harm.
#[derive(Debug)]
pub struct Differs {
    pub claim: &'static str,
    pub says: &'static str,
    pub why: &'static str,
}

const fn differs(claim: &'static str, says: &'static str, why: &'static str) -> Differs {
    Differs { claim, says, why }
}

const SAME: &str = "refused all the same: Millpond tells these codes apart nowhere";
const OTHERS: &str = "Millpond and its clients send no such request";
const HASHED: &str = "what is made of parts counts once it was read through SHA-256";

/// All that is known, of release 4.48.
pub const SEAWEEDFS: &[Differs] = &[
    // Downloads.
    differs(
        "nosniff of a download",
        "nothing",
        "S3 has no such header; it is served as an attachment all the same",
    ),
    differs("range bytes=5-3", "416 InvalidRange", OTHERS),
    differs(
        "the rest of what was replaced",
        "206",
        "If-Range is not heeded: a client that goes on compares the SHA-256 of the whole",
    ),
    // PUTs.
    differs("a URL with a header that is not signed", "403 SignatureDoesNotMatch", SAME),
    differs("a URL beside another signature", "403 SignatureDoesNotMatch", SAME),
    differs("an unsigned header", "403 SignatureDoesNotMatch", SAME),
    differs("half a checksum", "400 BadDigest", SAME),
    differs(
        "no checksum behind the body",
        "200",
        "only of bodies in chunks it heeds x-amz-trailer; nobody else sends it",
    ),
    differs(
        "no length",
        "200",
        "a URL of Millpond's signs the length, and a body without one is refused there",
    ),
    differs(
        "what is said to who asks before it sends to a URL that has expired",
        "HTTP/1.1 100",
        "the answer comes behind the body",
    ),
    differs("more than 2 KiB beside an object", "200", OTHERS),
    differs("a PUT that names what is not there", "412 PreconditionFailed", OTHERS),
    differs("completing what names what is not there", "412 PreconditionFailed", OTHERS),
    differs(
        "a session token that it never issued",
        "refused",
        "so it should be: the embedded server issues none, and takes any that is signed",
    ),
    differs("a URL with a session token that it never issued", "403 InvalidAccessKeyId", "the same"),
    // Signed in a header.
    differs(
        "fewer bytes than a header signs",
        "200",
        "x-amz-content-sha256 is not compared: Millpond signs x-amz-checksum-sha256, which is",
    ),
    differs("other bytes than a header signs", "200", "the same"),
    differs("another byte in a signed chunk", "500 InternalError", SAME),
    differs("another signature of a chunk", "500 InternalError", SAME),
    differs("a wrong checksum behind chunks", "400 InvalidDigest", SAME),
    differs("no checksum behind chunks", "400 IncompleteBody", SAME),
    // Parts.
    differs("to complete no parts", "404 NoSuchUpload", OTHERS),
    differs("a part twice", "200", OTHERS),
    differs("another checksum of a part", "400 BadDigest", SAME),
    differs("a checksum of another kind", "200", HASHED),
    differs("another size of the object", "200", HASHED),
    differs("the tag of a part that was replaced", "200", HASHED),
    differs("a part with a header that is not signed", "403 SignatureDoesNotMatch", SAME),
    differs("a part with half a checksum", "400 BadDigest", SAME),
    differs("a part with a wrong CRC", "400 InvalidRequest", SAME),
    differs("part 0", "400 InvalidPart", SAME),
    differs("part 10,001", "400 InvalidPart", SAME),
    differs("checksums of parts that are listed", "none", "a part that may be another gets a URL again"),
    differs("to abort an upload that was aborted", "204", "it is gone either way"),
    differs("to abort an upload that was completed", "204", "the object stays"),
    differs("a key to go on from, among uploads in parts", "none", "whoever lists goes on from both markers"),
    differs("uploads in parts, folded: keys and prefixes", "5 0", OTHERS),
    // Listings.
    differs(
        "keys beside a prefix of theirs",
        "p/a p-q",
        "directories come before their neighbours; no key of Millpond's has such a neighbour",
    ),
    differs("keys of any kind by form 1", "a b, a+b, then in a circle", OTHERS),
    differs("keys of any kind by form 1, folded", "a b, a+b, then in a circle", OTHERS),
    differs("a token that no page gave", "200", OTHERS),
    differs("1,001 deletes", "400 InvalidArgument", OTHERS),
    // Browsers.
    differs("https://app.example.org that asks to PATCH", "200", "the request itself is refused"),
];
