-- Kinds `json` and `attributes` of long_values: messages that are nested values or an attribute each. Rows that are there stay
-- as they are; views tell the kinds apart.
DROP VIEW long_elements;
DROP VIEW long_texts;

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
    WHERE long_values.kind IN ('int32', 'int64')
);

-- Long texts, put together; NULL where a part is missing. Nested values are JSON, and attributes whose names count what they
-- list are an object of JSON under the beginning of their names.
CREATE VIEW long_texts AS
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    long_values.key,
    (
        SELECT CASE
            WHEN count(piece) < count(*) THEN NULL
            WHEN long_values.kind = 'attributes' THEN '{' || group_concat(piece, '') || '}'
            ELSE group_concat(piece, '')
        END
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
WHERE long_values.kind IN ('text', 'json', 'attributes');
