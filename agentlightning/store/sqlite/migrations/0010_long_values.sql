-- Long values of a span's attributes: lists of integers, little-endian, and texts in UTF-8 (kind `text`). Each call of a
-- conversation says again what was said before, so what a value has in common with the beginning of an earlier one of its
-- attempt is kept there alone. `parts` is a JSON list of `[value_key, start, size]`: from byte `start` on, the value is the
-- first `size` bytes of the `data` of that row, its own included. `digest` is of the whole value (SHA-256, its first 16
-- bytes). `{"$array": n}` in the attributes stands for the value of that number, as in span_arrays: value_key = span_key * 256 + n.
CREATE TABLE long_values (
    value_key INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    parts TEXT NOT NULL,
    digest BLOB NOT NULL,
    data BLOB NOT NULL
);

-- The same of long values, by their parts: the tokens of a part that is missing are missing, and no other stands in their place.
CREATE VIEW long_elements AS
SELECT
    value_key,
    key,
    kind,
    position,
    ((instr('0123456789ABCDEF', substr(digits, 1, 1)) - 1) << 4)
    | (instr('0123456789ABCDEF', substr(digits, 2, 1)) - 1)
    | ((instr('0123456789ABCDEF', substr(digits, 3, 1)) - 1) << 12)
    | ((instr('0123456789ABCDEF', substr(digits, 4, 1)) - 1) << 8)
    | ((instr('0123456789ABCDEF', substr(digits, 5, 1)) - 1) << 20)
    | ((instr('0123456789ABCDEF', substr(digits, 6, 1)) - 1) << 16)
    | ((instr('0123456789ABCDEF', substr(digits, 7, 1)) - 1) << 28)
    | ((instr('0123456789ABCDEF', substr(digits, 8, 1)) - 1) << 24) AS low,
    CASE WHEN kind = 'int32' THEN 0 ELSE
        ((instr('0123456789ABCDEF', substr(digits, 9, 1)) - 1) << 4)
        | (instr('0123456789ABCDEF', substr(digits, 10, 1)) - 1)
        | ((instr('0123456789ABCDEF', substr(digits, 11, 1)) - 1) << 12)
        | ((instr('0123456789ABCDEF', substr(digits, 12, 1)) - 1) << 8)
        | ((instr('0123456789ABCDEF', substr(digits, 13, 1)) - 1) << 20)
        | ((instr('0123456789ABCDEF', substr(digits, 14, 1)) - 1) << 16)
        | ((instr('0123456789ABCDEF', substr(digits, 15, 1)) - 1) << 28)
        | ((instr('0123456789ABCDEF', substr(digits, 16, 1)) - 1) << 24)
    END AS high
FROM (
    SELECT
        long_values.value_key,
        long_values.key,
        long_values.kind,
        json_extract(part.value, '$[1]') / CASE WHEN long_values.kind = 'int32' THEN 4 ELSE 8 END + element.key AS position,
        CASE WHEN long_values.kind = 'int32'
            THEN hex(substr(kept.data, element.key * 4 + 1, 4))
            ELSE hex(substr(kept.data, element.key * 8 + 1, 8))
        END AS digits
    FROM long_values
    JOIN json_each(long_values.parts) AS part
    JOIN long_values AS kept ON kept.value_key = json_extract(part.value, '$[0]')
    JOIN json_each(
        '[0'
        || replace(
            hex(zeroblob(
                json_extract(part.value, '$[2]') / CASE WHEN long_values.kind = 'int32' THEN 4 ELSE 8 END - 1
            )),
            '00',
            ',0'
        )
        || ']'
    ) AS element
    WHERE long_values.kind <> 'text'
);

-- The view of token ids, of both tables.
DROP VIEW token_ids;

-- Token ids, one row per token: those that are packed and those short enough to stand in the attributes.
CREATE VIEW token_ids AS
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    array_elements.key,
    array_elements.position,
    CASE
        WHEN array_elements.kind = 'int64' THEN array_elements.high << 32 | array_elements.low
        WHEN array_elements.low >= 2147483648 THEN array_elements.low - 4294967296
        ELSE array_elements.low
    END AS token_id
FROM attempt_spans
JOIN array_elements
    ON array_elements.array_key BETWEEN attempt_spans.span_key * 256 AND attempt_spans.span_key * 256 + 255
WHERE array_elements.key LIKE '%token_ids' AND array_elements.kind IN ('int32', 'int64')
UNION ALL
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    long_elements.key,
    long_elements.position,
    CASE
        WHEN long_elements.kind = 'int64' THEN long_elements.high << 32 | long_elements.low
        WHEN long_elements.low >= 2147483648 THEN long_elements.low - 4294967296
        ELSE long_elements.low
    END AS token_id
FROM attempt_spans
JOIN long_elements
    ON long_elements.value_key BETWEEN attempt_spans.span_key * 256 AND attempt_spans.span_key * 256 + 255
WHERE long_elements.key LIKE '%token_ids' AND long_elements.kind IN ('int32', 'int64')
UNION ALL
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    attribute.key,
    element.key,
    element.value
FROM attempt_spans
JOIN json_each(attempt_spans.attributes) AS attribute
JOIN json_each(attribute.value) AS element
WHERE attribute.key LIKE '%token_ids' AND attribute.type = 'array' AND element.type = 'integer';

-- Long texts, put together; NULL where a part is missing.
CREATE VIEW long_texts AS
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    long_values.key,
    (
        SELECT CASE WHEN count(piece) = count(*) THEN group_concat(piece, '') END
        FROM (
            SELECT CAST(substr(kept.data, 1, json_extract(part.value, '$[2]')) AS TEXT) AS piece
            FROM json_each(long_values.parts) AS part
            LEFT JOIN long_values AS kept ON kept.value_key = json_extract(part.value, '$[0]')
            ORDER BY part.key
        )
    ) AS text
FROM attempt_spans
JOIN long_values
    ON long_values.value_key BETWEEN attempt_spans.span_key * 256 AND attempt_spans.span_key * 256 + 255
WHERE long_values.kind = 'text';
