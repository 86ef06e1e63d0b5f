-- Tags of rollouts, as JSON text: those that their stored spans carry.
CREATE TABLE rollout_tags (
    tag TEXT NOT NULL,
    rollout_key INTEGER NOT NULL REFERENCES rollouts (rollout_key),
    PRIMARY KEY (tag, rollout_key)
) WITHOUT ROWID;
CREATE INDEX rollout_tags_by_rollout ON rollout_tags (rollout_key);

-- Those of the spans that are stored already. json_extract with two paths, of which the second finds nothing, answers
-- with a list, `[<tag>,null]`, in which the tag stands as it was written; as an SQL value a text would end at its first NUL.
INSERT OR IGNORE INTO rollout_tags (tag, rollout_key)
SELECT substr(listed, 2, length(listed) - 7), rollout_key
FROM (
    SELECT json_extract(spans.attributes, tag.fullkey, '$[0]') AS listed, tag.type AS type, rollouts.rollout_key
    FROM spans
    JOIN attempts USING (attempt_key)
    JOIN rollouts USING (rollout_id)
    JOIN json_each(spans.attributes) AS tag
    WHERE instr(spans.attributes, '"agentlightning.tag.') > 0
        AND tag.key GLOB 'agentlightning.tag.[0-9]*'
        AND substr(tag.key, 20) NOT GLOB '*[^0-9]*'
    UNION ALL
    SELECT json_extract(spans.attributes, tag.fullkey, '$[0]'), tag.type, rollouts.rollout_key
    FROM spans
    JOIN attempts USING (attempt_key)
    JOIN rollouts USING (rollout_id)
    JOIN json_each(spans.attributes, '$."agentops.tags"') AS tag
    WHERE instr(spans.attributes, '"agentops.tags":[') > 0
)
WHERE type = 'text' OR type = 'object' AND instr(listed, '[{"$utf8":') = 1;
