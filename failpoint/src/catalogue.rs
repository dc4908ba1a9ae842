//! Every point, by the program that passes it.

/// Makes the enum, the names and the list of all.
macro_rules! catalogue {
    ($($(#[$doc:meta])* $program:ident $point:ident = $name:literal,)*) => {
        /// A place between two steps.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        #[cfg(feature = "armed")]
        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)*];

            /// What the environment calls it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }

            /// Which program passes it.
            pub const fn program(self) -> Program {
                match self {
                    $(Self::$point => Program::$program,)*
                }
            }
        }
    };
}

/// Who passes a point, and what has to happen so that it does.
#[cfg(feature = "armed")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The server, when its data directory is new.
    First,
    /// The server, at every start.
    Start,
    /// The server, when its ledger is one of an older program.
    Migration,
    /// The server, while it works.
    Server,
    /// `millpond-edge push` and `spool flush`.
    Push,
    /// `millpond-edge listen`.
    Listen,
    /// `millpond-edge process`.
    Process,
}

catalogue! {
    /// A secret is written and synced, and has not its name yet.
    First SecretWritten = "secret-written",
    /// A migration's statements have run and are not committed.
    First LedgerMigrating = "ledger-migrating",
    /// A migration is committed.
    First LedgerMigrated = "ledger-migrated",
    /// The directories of the embedded storage are made, and its catalogue is.
    First StorageFounded = "storage-founded",

    /// The copy of an older ledger is whole and synced, and has not its name yet.
    Migration LedgerCopied = "ledger-copied",
    /// It has it for good; the ledger is as it was.
    Migration LedgerKept = "ledger-kept",

    /// The ledger is open and its cores are loaded.
    Start LedgerOpened = "ledger-opened",
    /// What the last run left over is doomed; nothing listens yet.
    Start LeftoversDoomed = "leftovers-doomed",
    /// Everything listens; nobody was told where.
    Start ServerListens = "server-listens",

    /// The jobs of a group have run; its COMMIT is next.
    Server LedgerGrouped = "ledger-grouped",
    /// The group is committed; no answer is out.
    Server LedgerCommitted = "ledger-committed",
    /// The answers are out; nobody was told of the commit.
    Server LedgerAnswered = "ledger-answered",
    /// In the transaction that seals a batch.
    Server BatchSealing = "batch-sealing",
    /// In the transaction that grants a lease.
    Server LeaseGranting = "lease-granting",
    /// In the transaction that moves the pointer to a result.
    Server PointerMoving = "pointer-moving",

    /// An upload is committed; its PUBACK is next.
    Server UploadCommitted = "upload-committed",
    /// A bundle is committed; its PUBACK is next.
    Server BundleCommitted = "bundle-committed",
    /// A staged file has a row; its bytes are next.
    Server StageGranted = "stage-granted",
    /// A staged file's bytes are in storage; what makes them count is next.
    Server StageWritten = "stage-written",
    /// A published result is committed; its PUBACK is next.
    Server ResultCommitted = "result-committed",
    /// A pointer is committed; telling those who are connected is next.
    Server PointerTelling = "pointer-telling",

    /// A grant is committed; no URL was handed out.
    Server GrantCommitted = "grant-committed",
    /// Storage has begun an upload in parts that no row names.
    Server MultipartBegun = "multipart-begun",
    /// Storage was asked and has all of what is to be committed.
    Server CommitLooked = "commit-looked",
    /// `commit` has counted; its answer is next.
    Server CommitCounted = "commit-counted",
    /// Parts have become one object; reading it is next.
    Server PartsCompleted = "parts-completed",
    /// An object was read and is good; its row does not say so.
    Server VerifyRead = "verify-read",
    /// All of a set is verified; counting it is next.
    Server VerifyMarked = "verify-marked",
    /// A verified set counts; telling its owner is next.
    Server VerifyCounted = "verify-counted",
    /// The decision of an ask is committed; its answer is next.
    Server AskDecided = "ask-decided",
    /// `done` has found a whole result in storage; committing it is next.
    Server DoneLooked = "done-looked",

    /// A sealed batch is found; nothing is written of it.
    Server SealBegun = "seal-begun",
    /// A pack is in storage; its rows are next.
    Server PackWritten = "pack-written",
    /// A pack's rows are committed.
    Server PackCounted = "pack-counted",
    /// A manifest is in storage; its row is next.
    Server ManifestWritten = "manifest-written",
    /// A manifest's row is committed and its round is ready.
    Server ManifestCounted = "manifest-counted",
    /// Files that are in a pack are about to leave the ledger.
    Server PurgeBegun = "purge-begun",
    /// They have left it.
    Server PurgeEnded = "purge-ended",
    /// `round.json` is in storage; its row is next.
    Server StoryWritten = "story-written",
    /// A batch is marked as not kept; its bytes are all there.
    Server ExpireMarked = "expire-marked",
    /// Its files and packs are doomed; the batch does not say that it is done.
    Server ExpireDoomed = "expire-doomed",
    /// Doomed objects are found; none is deleted.
    Server SweepBegun = "sweep-begun",
    /// They are deleted; their rows do not say so.
    Server SweepDeleted = "sweep-deleted",

    /// A body's file is made; nothing is in it.
    Server BlobCreated = "blob-created",
    /// A body is written; its sync is next.
    Server BlobWritten = "blob-written",
    /// A body is synced; its rename is next.
    Server BlobSynced = "blob-synced",
    /// A body has its name; the directory's sync is next.
    Server BlobRenamed = "blob-renamed",
    /// A body is on disk for good; its row is next.
    Server BlobSettled = "blob-settled",
    /// Storage's rows are written; their COMMIT is next.
    Server CatalogGrouped = "catalog-grouped",
    /// Storage's rows are committed; no answer is out.
    Server CatalogCommitted = "catalog-committed",
    /// An upload in parts is an object; the files of parts that it does not use are there still.
    Server UploadCompleted = "upload-completed",
    /// An object has no row any more; its file is there still.
    Server ObjectDeleted = "object-deleted",

    /// The directories of a new spool are made; its version is not written.
    Push SpoolFounding = "spool-founding",
    /// Files are copied into the spool; their sync is next.
    Push SpoolStaged = "spool-staged",
    /// One of them is to be synced.
    Push SpoolSyncing = "spool-syncing",
    /// They are synced; their rename is next.
    Push SpoolSynced = "spool-synced",
    /// One of them has its name.
    Push SpoolRenamed = "spool-renamed",
    /// All have; the directory's sync is next.
    Push SpoolShown = "spool-shown",
    /// They are in the spool for good; nobody was told.
    Push SpoolAdded = "spool-added",
    /// A statement is written and synced, and has not its name yet.
    Push StatementWritten = "statement-written",
    /// A message is ready and noted as one that may have been sent; nothing of it has left.
    Push FlushNoted = "flush-noted",
    /// The server has acknowledged a message; its receipt is next.
    Push FlushShipped = "flush-shipped",
    /// The receipt was read; the files are in the spool still.
    Push FlushReceipted = "flush-receipted",
    /// One of them is to leave the spool.
    Push SpoolRemoving = "spool-removing",
    /// They have left the spool; the receipt is not acknowledged.
    Push FlushRemoved = "flush-removed",
    /// A large file is in storage; `commit` is next.
    Push LargeSent = "large-sent",
    /// It counts; it is in the spool still.
    Push LargeCounted = "large-counted",

    /// All bytes of a download are there; proving them is next.
    Listen DownloadWhole = "download-whole",
    /// A result is proven and in its place; nothing names it.
    Listen ResultPlaced = "result-placed",
    /// The state names it; `current` names the one before.
    Listen ResultNoted = "result-noted",
    /// `current` names it; the server was not told.
    Listen ResultShown = "result-shown",
    /// The command has ended; nobody noted it.
    Listen ResultApplied = "result-applied",
    /// The server was told; nobody noted that.
    Listen ResultTold = "result-told",

    /// A lease was granted; it is not noted.
    Process ProcessLeased = "process-leased",
    /// It is noted.
    Process ProcessNoted = "process-noted",
    /// The inputs are there; the command is next.
    Process ProcessFetched = "process-fetched",
    /// The command runs.
    Process ProcessRunning = "process-running",
    /// The command has ended; its output is to be sent.
    Process ProcessMade = "process-made",
    /// The result was published, or is in storage; `done` is next.
    Process ProcessSent = "process-sent",
    /// The round is closed; the note of its lease is there still.
    Process ProcessClosed = "process-closed",
}
