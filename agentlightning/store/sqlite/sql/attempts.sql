-- name: get_attempt
-- One attempt of a rollout.
SELECT attempt_key, rollout_id, attempt_id, attempts.sequence_id, status, start_time, end_time, worker_id,
    last_heartbeat_time, metadata, deadline, last_sequence_id, seals.time, seals.spans, seals.sequence_id, seals.late,
    seals.unproven
FROM attempts LEFT JOIN seals USING (attempt_key) WHERE rollout_id = ? AND attempt_id = ?;

-- name: get_attempts
-- The attempts of a rollout, first to last.
SELECT attempt_key, rollout_id, attempt_id, attempts.sequence_id, status, start_time, end_time, worker_id,
    last_heartbeat_time, metadata, deadline, last_sequence_id, seals.time, seals.spans, seals.sequence_id, seals.late,
    seals.unproven
FROM attempts LEFT JOIN seals USING (attempt_key) WHERE rollout_id = ? ORDER BY attempts.sequence_id;

-- name: latest_attempt
-- The last attempt of a rollout.
SELECT attempt_key, rollout_id, attempt_id, attempts.sequence_id, status, start_time, end_time, worker_id,
    last_heartbeat_time, metadata, deadline, last_sequence_id, seals.time, seals.spans, seals.sequence_id, seals.late,
    seals.unproven
FROM attempts LEFT JOIN seals USING (attempt_key) WHERE rollout_id = ? ORDER BY attempts.sequence_id DESC LIMIT 1;

-- name: overdue_attempts
-- The attempts whose deadline has passed, earliest first.
SELECT attempt_key, rollout_id, attempt_id, attempts.sequence_id, status, start_time, end_time, worker_id,
    last_heartbeat_time, metadata, deadline, last_sequence_id, seals.time, seals.spans, seals.sequence_id, seals.late,
    seals.unproven
FROM attempts LEFT JOIN seals USING (attempt_key) WHERE deadline IS NOT NULL AND deadline <= ? ORDER BY deadline, attempt_key;

-- name: next_deadline
-- The earliest deadline of all attempts.
SELECT deadline FROM attempts WHERE deadline IS NOT NULL ORDER BY deadline LIMIT 1;

-- name: add_attempt
-- Insert a new attempt.
INSERT INTO attempts (
    rollout_id, attempt_id, sequence_id, status, start_time, end_time, worker_id, last_heartbeat_time,
    metadata, deadline
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: change_attempt
-- Replace what may change of an attempt.
UPDATE attempts SET
    status = ?, end_time = ?, worker_id = ?, last_heartbeat_time = ?, metadata = ?, deadline = ?
WHERE attempt_key = ?;

-- name: seal_attempt
-- Keep the seal of an attempt; there is one at most.
INSERT OR IGNORE INTO seals (attempt_key, time, spans, sequence_id, late, unproven) VALUES (?, ?, ?, ?, ?, ?);

-- name: put_counter
-- Set the highest sequence id that an attempt has given out.
UPDATE attempts SET last_sequence_id = ? WHERE attempt_key = ?;

-- name: count_attempts
-- How many attempts there are.
SELECT count(*) FROM attempts;
