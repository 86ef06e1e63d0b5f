-- name: get_rollout
-- One rollout by its id.
SELECT rollout_id, status, mode, resources_id, start_time, end_time, config, metadata, input, (
    SELECT json_group_array(json(tag)) FROM rollout_tags WHERE rollout_tags.rollout_key = rollouts.rollout_key
)
FROM rollouts WHERE rollout_id = ?;

-- name: put_rollout
-- Insert a rollout, or replace it in its place of the order of creation.
INSERT INTO rollouts (rollout_id, status, mode, resources_id, start_time, end_time, config, metadata, input)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (rollout_id) DO UPDATE SET
    status = excluded.status,
    mode = excluded.mode,
    resources_id = excluded.resources_id,
    start_time = excluded.start_time,
    end_time = excluded.end_time,
    config = excluded.config,
    metadata = excluded.metadata,
    input = excluded.input;

-- name: move_rollout
-- Change a rollout whose input, which may be long, stays as it is.
UPDATE rollouts SET
    status = ?, mode = ?, resources_id = ?, start_time = ?, end_time = ?, config = ?, metadata = ?
WHERE rollout_id = ?;

-- name: find_rollouts
-- Rollouts under a filter, in an order, one page of them.
SELECT rollout_id, status, mode, resources_id, start_time, end_time, config, metadata, input, (
    SELECT json_group_array(json(tag)) FROM rollout_tags WHERE rollout_tags.rollout_key = rollouts.rollout_key
)
FROM rollouts;

-- name: add_tag
-- Give a rollout a tag, unless it has it.
INSERT OR IGNORE INTO rollout_tags (tag, rollout_key) SELECT ?, rollout_key FROM rollouts WHERE rollout_id = ?;

-- name: tagged
-- The rollouts that have a tag.
SELECT rollout_key FROM rollout_tags WHERE tag = ?;

-- name: count_rollouts
-- How many rollouts there are under a filter.
SELECT count(*) FROM rollouts;

-- name: count_by_status
-- How many rollouts have each status.
SELECT status, count(*) FROM rollouts GROUP BY status;

-- name: finished_among
-- Those of the given rollouts that are finished.
SELECT rollout_id FROM rollouts
WHERE status IN ('succeeded', 'failed', 'cancelled') AND rollout_id IN;

-- name: enqueue
-- Put a rollout at the end of the queue, wherever it stood.
INSERT OR REPLACE INTO queue (position, rollout_id)
VALUES ((SELECT coalesce(max(position), 0) + 1 FROM queue), ?);

-- name: leave_queue
-- Take a rollout out of the queue.
DELETE FROM queue WHERE rollout_id = ?;

-- name: head_of_queue
-- The rollouts that have waited longest.
SELECT rollout_id FROM queue ORDER BY position LIMIT ?;
