-- name: last_span_key
-- The highest key of a span, also of one that was deleted by hand and left values behind; the next spans follow it.
SELECT max(
    coalesce((SELECT max(span_key) FROM spans), 0),
    coalesce((SELECT max(array_key) FROM span_arrays), 0) / 256,
    coalesce((SELECT max(value_key) FROM long_values), 0) / 256
);

-- name: stored_among
-- Those of the given spans of an attempt that are stored, and whether an account counts them.
SELECT span_id, declared FROM spans WHERE attempt_key = ? AND span_id IN;

-- name: open_among
-- Those of the given spans of an attempt that are open, and whether an account counts them.
SELECT span_id, declared FROM open_spans WHERE attempt_key = ? AND span_id IN;

-- name: any_open_span
-- Whether any span of any attempt is open.
SELECT 1 FROM open_spans LIMIT 1;

-- name: add_span
-- Store a span under a key of its own.
INSERT INTO spans (
    span_key, attempt_key, sequence_id, declared, resource_key, trace_id, span_id, parent_id, name,
    status_code, status_description, start_time, end_time, attributes, events, links, extra
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_array
-- Store one packed list of a span.
INSERT INTO span_arrays (array_key, key, kind, data) VALUES (?, ?, ?, ?);

-- name: declare_span
-- Note that an account counts a stored span.
UPDATE spans SET declared = 1 WHERE attempt_key = ? AND span_id = ?;

-- name: declare_open_span
-- Note that an account counts an open span.
UPDATE open_spans SET declared = 1 WHERE attempt_key = ? AND span_id = ?;

-- name: add_open_span
-- Keep a span as open.
INSERT INTO open_spans (
    attempt_key, declared, resource_key, trace_id, span_id, parent_id, name,
    status_code, status_description, start_time, end_time, attributes, events, links, extra
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: remove_open_span
-- Forget an open span.
DELETE FROM open_spans WHERE attempt_key = ? AND span_id = ?;

-- name: find_span_keys
-- Spans under a filter, in an order, one page of them; only their keys, which costs no long column.
SELECT span_key FROM spans;

-- name: count_spans
-- How many spans there are under a filter.
SELECT count(*) FROM spans;

-- name: get_spans
-- Whole spans by their keys.
SELECT span_key, attempt_key, sequence_id, trace_id, span_id, parent_id, name, status_code,
    status_description, start_time, end_time, attributes, events, links, extra, resource
FROM spans JOIN resources_otel USING (resource_key)
WHERE span_key IN;

-- name: get_attempt_spans
-- The whole spans of an attempt.
SELECT span_key, attempt_key, sequence_id, trace_id, span_id, parent_id, name, status_code,
    status_description, start_time, end_time, attributes, events, links, extra, resource
FROM spans JOIN resources_otel USING (resource_key)
WHERE attempt_key = ?;

-- name: get_arrays
-- The packed lists of one span.
SELECT array_key, key, kind, data FROM span_arrays WHERE array_key BETWEEN ? AND ?;

-- name: add_long_value
-- Store one long value of a span.
INSERT INTO long_values (value_key, key, kind, parts, digest, data) VALUES (?, ?, ?, ?, ?, ?);

-- name: get_parts
-- What a long value is put together of, and its digest; reads none of its data.
SELECT parts, digest FROM long_values WHERE value_key = ?;

-- name: get_long_values
-- The long values of one span.
SELECT value_key, key, kind, parts, digest, data FROM long_values WHERE value_key BETWEEN ? AND ?;

-- name: get_value_data
-- What a long value has of its own.
SELECT data FROM long_values WHERE value_key = ?;

-- name: all_long_values
-- All long values, each with the ids of its span.
SELECT value_key, key, rollout_id, attempt_id, span_id, kind, parts, digest, data
FROM long_values
LEFT JOIN spans ON span_key = value_key / 256
LEFT JOIN attempts USING (attempt_key);

-- name: spans_beside
-- Spans of whose values some stand beside the row, each with its ids, and the numbers of those that are there.
SELECT
    rollout_id,
    attempt_id,
    span_id,
    attributes,
    (SELECT json_group_array(array_key % 256) FROM span_arrays WHERE array_key BETWEEN span_key * 256 AND span_key * 256 + 255),
    (SELECT json_group_array(value_key % 256) FROM long_values WHERE value_key BETWEEN span_key * 256 AND span_key * 256 + 255)
FROM spans
LEFT JOIN attempts USING (attempt_key)
WHERE instr(attributes, '{"$array":') > 0;

-- name: get_open_spans
-- The open spans of an attempt.
SELECT trace_id, span_id, parent_id, name, status_code, status_description, start_time, end_time,
    attributes, events, links, extra, resource
FROM open_spans JOIN resources_otel USING (resource_key)
WHERE attempt_key = ?;

-- name: count_attempt_spans
-- How many spans of an attempt are stored, how many are open, how many of both no account counts, and how many are late.
SELECT
    (SELECT count(*) FROM spans WHERE spans.attempt_key = attempts.attempt_key),
    (SELECT count(*) FROM open_spans WHERE open_spans.attempt_key = attempts.attempt_key),
    (SELECT count(*) FROM spans WHERE spans.attempt_key = attempts.attempt_key AND NOT declared)
    + (SELECT count(*) FROM open_spans WHERE open_spans.attempt_key = attempts.attempt_key AND NOT declared),
    (SELECT count(*) FROM late_spans WHERE late_spans.attempt_key = attempts.attempt_key)
FROM attempts WHERE attempt_key = ?;

-- name: late_among
-- Those of the given spans that are stored as late beside an attempt.
SELECT span_id FROM late_spans WHERE attempt_key = ? AND span_id IN;

-- name: add_late_span
-- Store a span as late.
INSERT INTO late_spans (
    attempt_key, resource_key, trace_id, span_id, parent_id, name,
    status_code, status_description, start_time, end_time, attributes, events, links, extra
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: get_late_spans
-- The late spans beside an attempt, in the order in which they were stored.
SELECT trace_id, span_id, parent_id, name, status_code, status_description, start_time, end_time,
    attributes, events, links, extra, resource
FROM late_spans JOIN resources_otel USING (resource_key)
WHERE attempt_key = ? ORDER BY late_key;

-- name: count_open_spans
-- How many spans are open.
SELECT count(*) FROM open_spans;

-- name: get_resource_key
-- The key of what produced spans.
SELECT resource_key FROM resources_otel WHERE digest = ?;

-- name: add_resource
-- Keep what produced spans.
INSERT INTO resources_otel (digest, resource) VALUES (?, ?);

-- name: get_accounts
-- What the writers say of an attempt.
SELECT writer_id, revision, started, late, unattributed, closed, dropped, late_dropped, unstored
FROM accounts WHERE attempt_key = ?;

-- name: get_revision
-- How recent what a writer says of an attempt is.
SELECT revision FROM accounts WHERE attempt_key = ? AND writer_id = ?;

-- name: put_account
-- Insert or replace what a writer says of an attempt.
INSERT OR REPLACE INTO accounts (
    attempt_key, writer_id, revision, started, late, unattributed, closed, dropped, late_dropped, unstored
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
