-- name: sign_in
-- Say that a process has the store open to write.
INSERT INTO openings (opening_id, process, inode, seen) VALUES (?, ?, ?, ?)
ON CONFLICT (opening_id) DO UPDATE SET inode = excluded.inode, seen = excluded.seen;

-- name: sign_out
-- Say that it has not any more.
DELETE FROM openings WHERE opening_id = ?;

-- name: forget_expired
-- Forget those that were silent for too long.
DELETE FROM openings WHERE seen < ?;

-- name: forget_openings
-- Forget all of them: a copy of one moment needs no log.
DELETE FROM openings;

-- name: get_openings
-- Who has the store open to write, or had it until the end of the process.
SELECT opening_id, process, inode, seen FROM openings;

-- name: last_seen
-- The last sign of life of a process.
SELECT max(seen) FROM openings WHERE process = ?;

-- name: add_copy
-- Keep that the file was copied while the store was open.
INSERT INTO copies (noticed_at, with_log) VALUES (?, ?);

-- name: get_copies
-- Whether it was, and whether there was a log beside it.
SELECT noticed_at, with_log FROM copies;

-- name: add_mark
-- Leave a mark.
INSERT INTO marks (mark) VALUES (?);

-- name: put_latest_mark
-- Keep its number where it is found without an index.
UPDATE latest_mark SET number = ?;

-- name: latest_mark
-- The number of the latest mark.
SELECT number FROM latest_mark;

-- name: forget_marks
-- Forget old ones.
DELETE FROM marks WHERE number <= ?;

-- name: has_mark
-- Whether a mark is in the store.
SELECT count(*) FROM marks WHERE mark = ?;

-- name: add_setback
-- Keep that something else was in the file than what had been committed.
INSERT INTO setbacks (noticed_at, with_log) VALUES (?, ?);

-- name: get_setbacks
-- When that was, and whether there was a log beside it.
SELECT noticed_at, with_log FROM setbacks;
