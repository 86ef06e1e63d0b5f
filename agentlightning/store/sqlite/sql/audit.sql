-- name: last_attempt_key
-- The highest key of an attempt.
SELECT coalesce(max(attempt_key), 0) FROM attempts;

-- name: audited_attempts
-- The attempts with keys in a range, each with what says whether its rollout is over.
SELECT attempt_key, rollout_id, attempt_id, attempts.status, rollouts.end_time
FROM attempts LEFT JOIN rollouts USING (rollout_id)
WHERE attempt_key BETWEEN ? AND ? ORDER BY attempt_key;

-- name: audited_spans
-- What the stored spans of these attempts are in number, and their sequence ids.
SELECT attempt_key, count(*), total(NOT declared), count(DISTINCT sequence_id), min(sequence_id), max(sequence_id)
FROM spans WHERE attempt_key BETWEEN ? AND ? GROUP BY attempt_key;

-- name: audited_open_spans
-- How many spans of these attempts are open, and how many of those no account counts.
SELECT attempt_key, count(*), total(NOT declared)
FROM open_spans WHERE attempt_key BETWEEN ? AND ? GROUP BY attempt_key;

-- name: audited_late_spans
-- How many late spans stand beside these attempts.
SELECT attempt_key, count(*) FROM late_spans WHERE attempt_key BETWEEN ? AND ? GROUP BY attempt_key;

-- name: audited_accounts
-- What the writers say of these attempts.
SELECT attempt_key, writer_id, revision, started, late, unattributed, closed, dropped, late_dropped, unstored
FROM accounts WHERE attempt_key BETWEEN ? AND ?;

-- name: doubtful_spans
-- The spans of these attempts that reading them alone can tell to be sound: all others are JSON of the right kind.
SELECT span_key, attempt_key, sequence_id, trace_id, span_id, parent_id, name, status_code,
    status_description, start_time, end_time, attributes, events, links, extra, resource
FROM spans JOIN resources_otel USING (resource_key)
WHERE attempt_key BETWEEN ? AND ? AND NOT coalesce(
    CASE WHEN json_valid(attributes) THEN json_type(attributes) = 'object' ELSE 0 END
    AND CASE WHEN json_valid(events) THEN json_type(events) = 'array' ELSE 0 END
    AND CASE WHEN json_valid(links) THEN json_type(links) = 'array' ELSE 0 END
    AND (extra IS NULL OR json_valid(extra)) AND json_valid(resource)
    AND instr(replace(attributes, '{"$array"', ''), '{"$') = 0
    AND instr(events, '{"$') = 0 AND instr(links, '{"$') = 0,
    0
);
