-- name: store_id
-- What names this store.
SELECT store_id FROM store_identity;

-- name: get_resources
-- The newest version under an id.
SELECT resources_id, create_time, update_time, version, resources
FROM resources WHERE resources_id = ?;

-- name: latest_resources
-- The resources that were added or updated last.
SELECT resources_id, create_time, update_time, version, resources
FROM resources ORDER BY recency DESC LIMIT 1;

-- name: put_resources
-- Insert resources or replace their version; they become the latest.
INSERT INTO resources (resources_id, create_time, update_time, version, resources, recency)
VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(recency), 0) + 1 FROM resources))
ON CONFLICT (resources_id) DO UPDATE SET
    create_time = excluded.create_time,
    update_time = excluded.update_time,
    version = excluded.version,
    resources = excluded.resources,
    recency = excluded.recency;

-- name: find_resources
-- Resources under a filter, in an order, one page of them.
SELECT resources_id, create_time, update_time, version, resources FROM resources;

-- name: count_resources
-- How many resources there are under a filter.
SELECT count(*) FROM resources;

-- name: get_worker
-- One worker by its id.
SELECT worker_id, status, heartbeat_stats, last_heartbeat_time, last_dequeue_time, last_busy_time,
    last_idle_time, current_rollout_id, current_attempt_id
FROM workers WHERE worker_id = ?;

-- name: put_worker
-- Insert a worker, or replace it in its place of the order of creation.
INSERT INTO workers (
    worker_id, status, heartbeat_stats, last_heartbeat_time, last_dequeue_time, last_busy_time,
    last_idle_time, current_rollout_id, current_attempt_id
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (worker_id) DO UPDATE SET
    status = excluded.status,
    heartbeat_stats = excluded.heartbeat_stats,
    last_heartbeat_time = excluded.last_heartbeat_time,
    last_dequeue_time = excluded.last_dequeue_time,
    last_busy_time = excluded.last_busy_time,
    last_idle_time = excluded.last_idle_time,
    current_rollout_id = excluded.current_rollout_id,
    current_attempt_id = excluded.current_attempt_id;

-- name: find_workers
-- Workers under a filter, in an order, one page of them.
SELECT worker_id, status, heartbeat_stats, last_heartbeat_time, last_dequeue_time, last_busy_time,
    last_idle_time, current_rollout_id, current_attempt_id
FROM workers;

-- name: count_workers
-- How many workers there are under a filter.
SELECT count(*) FROM workers;
