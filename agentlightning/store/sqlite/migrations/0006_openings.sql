-- Processes that have the store open to write, each from its first commit to its end, with the file that they write
-- to. The first commit is copied into the file at once, so that a copy of the file alone tells that a log belonged to it.
CREATE TABLE openings (
    opening_id TEXT PRIMARY KEY,
    process TEXT NOT NULL,
    inode TEXT NOT NULL,
    seen REAL NOT NULL
) WITHOUT ROWID;

-- That this file began as a copy that something else than `agl backup` made while the store was open.
CREATE TABLE copies (
    noticed_at TEXT NOT NULL,
    with_log INTEGER NOT NULL
);
