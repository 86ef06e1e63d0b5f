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
