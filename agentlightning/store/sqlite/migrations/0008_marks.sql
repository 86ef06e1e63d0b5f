-- Marks that writers leave in the store now and then, and on the file itself, as attributes of its inode: a file whose
-- mark is not in the store was overwritten in place, or has lost its log.
CREATE TABLE marks (
    number INTEGER PRIMARY KEY,
    mark TEXT NOT NULL UNIQUE
);

-- The number of the latest, in a page of its own: the file without its log has it as soon as the log was copied into it.
CREATE TABLE latest_mark (
    number INTEGER NOT NULL
);
INSERT INTO latest_mark VALUES (0);

-- When something else was found in the file than what had been committed, and whether a log was beside it, whose commits are
-- mixed with it now.
CREATE TABLE setbacks (
    noticed_at TEXT NOT NULL,
    with_log INTEGER NOT NULL
);
