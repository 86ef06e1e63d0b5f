-- The schema as it is after all migrations: for reading, and for the test that shows that they lead here.
-- Times are seconds since the epoch; JSON is text that any tool can read (codec/json_text.py says how NaN and
-- lone surrogates are written).

-- Which migrations this file has seen; PRAGMA user_version is the highest number.
CREATE TABLE migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at TEXT NOT NULL
);

-- What names this store, wherever its file lies and under whatever name it is opened. A backup has it too.
CREATE TABLE store_identity (
    store_id TEXT NOT NULL
);
INSERT INTO store_identity SELECT lower(hex(randomblob(16)));

-- Processes that have the store open to write, each from its first commit to its end, with the file that they write
-- to. The first commit is copied into the file at once, so that a copy of the file alone tells that a log belonged to it.
CREATE TABLE openings (
    opening_id TEXT PRIMARY KEY,
    process TEXT NOT NULL,
    inode TEXT NOT NULL,
    seen REAL NOT NULL
) WITHOUT ROWID;

-- That this file began as a copy that something else than `agl backup` made while the store was open.
CREATE TABLE copies (
    noticed_at TEXT NOT NULL,
    with_log INTEGER NOT NULL
);

-- Marks that writers leave in the store now and then, and on the file itself, as attributes of its inode: a file whose
-- mark is not in the store was overwritten in place, or has lost its log.
CREATE TABLE marks (
    number INTEGER PRIMARY KEY,
    mark TEXT NOT NULL UNIQUE
);

-- The number of the latest, in a page of its own: the file without its log has it as soon as the log was copied into it.
CREATE TABLE latest_mark (
    number INTEGER NOT NULL
);
INSERT INTO latest_mark VALUES (0);

-- When something else was found in the file than what had been committed, and whether a log was beside it, whose commits are
-- mixed with it now.
CREATE TABLE setbacks (
    noticed_at TEXT NOT NULL,
    with_log INTEGER NOT NULL
);

-- One task to be worked on.
CREATE TABLE rollouts (
    rollout_key INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    mode TEXT,
    resources_id TEXT,
    start_time REAL NOT NULL,
    end_time REAL,
    config TEXT NOT NULL,
    metadata TEXT,
    input TEXT NOT NULL
);
CREATE INDEX rollouts_by_status ON rollouts (status);

-- Tags of rollouts, as JSON text: those that their stored spans carry.
CREATE TABLE rollout_tags (
    tag TEXT NOT NULL,
    rollout_key INTEGER NOT NULL REFERENCES rollouts (rollout_key),
    PRIMARY KEY (tag, rollout_key)
) WITHOUT ROWID;
CREATE INDEX rollout_tags_by_rollout ON rollout_tags (rollout_key);

-- Rollouts that wait for a worker, oldest first.
CREATE TABLE queue (
    position INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL UNIQUE REFERENCES rollouts (rollout_id)
);

-- One execution of a rollout. `deadline` is when it becomes overdue, `last_sequence_id` the counter of its spans.
CREATE TABLE attempts (
    attempt_key INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL REFERENCES rollouts (rollout_id),
    attempt_id TEXT NOT NULL,
    sequence_id INTEGER NOT NULL,
    status TEXT NOT NULL,
    start_time REAL NOT NULL,
    end_time REAL,
    worker_id TEXT,
    last_heartbeat_time REAL,
    deadline REAL,
    last_sequence_id INTEGER NOT NULL DEFAULT 0,
    metadata TEXT,
    UNIQUE (rollout_id, sequence_id)
);
CREATE INDEX attempts_by_deadline ON attempts (deadline) WHERE deadline IS NOT NULL;

-- The word that an attempt is complete: how many spans it has, the highest sequence id among them, how many late spans
-- stood beside them, and why how many answers have no log-probabilities (a JSON object; NULL where nobody counted).
CREATE TABLE seals (
    attempt_key INTEGER PRIMARY KEY REFERENCES attempts (attempt_key),
    time REAL NOT NULL,
    spans INTEGER NOT NULL,
    sequence_id INTEGER NOT NULL,
    late INTEGER NOT NULL,
    unproven TEXT
);

-- What produced spans: the same for thousands of them, so kept once, under a digest of its text.
CREATE TABLE resources_otel (
    resource_key INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    resource TEXT NOT NULL
);

-- Ended spans. Short columns stand first: counting and filtering reads no page of a long attribute.
CREATE TABLE spans (
    span_key INTEGER PRIMARY KEY,
    attempt_key INTEGER NOT NULL REFERENCES attempts (attempt_key),
    sequence_id INTEGER NOT NULL,
    declared INTEGER NOT NULL,
    resource_key INTEGER NOT NULL REFERENCES resources_otel (resource_key),
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT,
    name TEXT NOT NULL,
    status_code TEXT NOT NULL,
    status_description TEXT,
    start_time REAL,
    end_time REAL,
    extra TEXT,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    links TEXT NOT NULL
);
CREATE UNIQUE INDEX spans_by_attempt ON spans (attempt_key, span_id);

-- Long lists of numbers of a span's attributes, little-endian. `{"$array": n}` in the attributes stands for the
-- n-th; array_key = span_key * 256 + n finds a span's arrays without an index.
CREATE TABLE span_arrays (
    array_key INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    data BLOB NOT NULL
);

-- Long values of a span's attributes: lists of integers, little-endian, texts in UTF-8 (kind `text`), nested values as JSON
-- text (`json`), and attributes whose names count what they list, `gen_ai.prompt.0.role` and so on, as the members of one
-- JSON object without its braces (`attributes`; `key` is the beginning of their names). Each call of a conversation says
-- again what was said before, so what a value has in common with the beginning of an earlier one of its attempt is kept
-- there alone. `parts` is a JSON list of `[value_key, start, size]`: from byte `start` on, the value is the first `size`
-- bytes of the `data` of that row, its own included. `digest` is of the whole value (SHA-256, its first 16 bytes).
-- `{"$array": n}` in the attributes stands for the value of that number, as in span_arrays: value_key = span_key * 256 + n.
CREATE TABLE long_values (
    value_key INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    parts TEXT NOT NULL,
    digest BLOB NOT NULL,
    data BLOB NOT NULL
);

-- Spans with a committed start and no end.
CREATE TABLE open_spans (
    attempt_key INTEGER NOT NULL REFERENCES attempts (attempt_key),
    span_id TEXT NOT NULL,
    declared INTEGER NOT NULL,
    resource_key INTEGER NOT NULL REFERENCES resources_otel (resource_key),
    trace_id TEXT NOT NULL,
    parent_id TEXT,
    name TEXT NOT NULL,
    status_code TEXT NOT NULL,
    status_description TEXT,
    start_time REAL,
    end_time REAL,
    extra TEXT,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    links TEXT NOT NULL,
    PRIMARY KEY (attempt_key, span_id)
);

-- Spans that started after the trace_context whose context they were started in had closed. They belong to no attempt,
-- and stand beside the one that they are late of, in the order in which they were stored.
CREATE TABLE late_spans (
    late_key INTEGER PRIMARY KEY,
    attempt_key INTEGER NOT NULL REFERENCES attempts (attempt_key),
    resource_key INTEGER NOT NULL REFERENCES resources_otel (resource_key),
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT,
    name TEXT NOT NULL,
    status_code TEXT NOT NULL,
    status_description TEXT,
    start_time REAL,
    end_time REAL,
    extra TEXT,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    links TEXT NOT NULL
);
CREATE UNIQUE INDEX late_spans_by_attempt ON late_spans (attempt_key, span_id);

-- What each writer says of each attempt; types/receipt.py says how receipts are made of it.
CREATE TABLE accounts (
    attempt_key INTEGER NOT NULL REFERENCES attempts (attempt_key),
    writer_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    started INTEGER NOT NULL,
    late INTEGER NOT NULL,
    unattributed INTEGER NOT NULL,
    closed INTEGER NOT NULL,
    dropped TEXT NOT NULL,
    late_dropped TEXT NOT NULL,
    unstored TEXT NOT NULL,
    PRIMARY KEY (attempt_key, writer_id)
) WITHOUT ROWID;

-- Versioned things that agents run with; the highest `recency` is the latest.
CREATE TABLE resources (
    resources_key INTEGER PRIMARY KEY,
    resources_id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    create_time REAL NOT NULL,
    update_time REAL NOT NULL,
    recency INTEGER NOT NULL UNIQUE,
    resources TEXT NOT NULL
);

-- Processes that execute attempts.
CREATE TABLE workers (
    worker_key INTEGER PRIMARY KEY,
    worker_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    last_heartbeat_time REAL,
    last_dequeue_time REAL,
    last_busy_time REAL,
    last_idle_time REAL,
    current_rollout_id TEXT,
    current_attempt_id TEXT,
    heartbeat_stats TEXT
);

-- For people: spans under their ids.
CREATE VIEW attempt_spans AS
SELECT
    attempts.rollout_id,
    attempts.attempt_id,
    spans.sequence_id,
    spans.span_id,
    spans.parent_id,
    spans.name,
    spans.status_code,
    spans.status_description,
    spans.start_time,
    spans.end_time,
    spans.attributes,
    spans.events,
    spans.links,
    spans.trace_id,
    spans.span_key
FROM spans
JOIN attempts USING (attempt_key);

-- 2^n as an exact float64, for every n that has one; the view below multiplies by it.
CREATE TABLE power_of_two (
    exponent INTEGER PRIMARY KEY,
    value REAL NOT NULL
);
WITH RECURSIVE up (exponent, value) AS (
    SELECT 0, 1.0
    UNION ALL
    SELECT exponent + 1, value * 2.0 FROM up WHERE exponent < 1023
)
INSERT INTO power_of_two SELECT exponent, value FROM up;
WITH RECURSIVE down (exponent, value) AS (
    SELECT -1, 0.5
    UNION ALL
    SELECT exponent - 1, value / 2.0 FROM down WHERE exponent > -1074
)
INSERT INTO power_of_two SELECT exponent, value FROM down;

-- The bytes of packed arrays as unsigned integers, one row per element: `low` are the first four bytes, `high`
-- the last four of eight. The inner json_each only counts: it gets a JSON list of as many zeros as there are
-- elements. A nibble is the place of its hex digit.
CREATE VIEW array_elements AS
SELECT
    array_key,
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
        span_arrays.array_key,
        span_arrays.key,
        span_arrays.kind,
        element.key AS position,
        CASE WHEN span_arrays.kind = 'int32'
            THEN hex(substr(span_arrays.data, element.key * 4 + 1, 4))
            ELSE hex(substr(span_arrays.data, element.key * 8 + 1, 8))
        END AS digits
    FROM span_arrays
    JOIN json_each(
        '[0'
        || replace(
            hex(zeroblob(
                length(span_arrays.data) / CASE WHEN span_arrays.kind = 'int32' THEN 4 ELSE 8 END - 1
            )),
            '00',
            ',0'
        )
        || ']'
    ) AS element
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
    WHERE long_values.kind IN ('int32', 'int64')
);

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

-- Log-probabilities, one row per token, exact; NaN, which SQL has no word for, is NULL.
CREATE VIEW logprobs AS
SELECT
    attempt_spans.rollout_id,
    attempt_spans.attempt_id,
    attempt_spans.sequence_id,
    attempt_spans.span_id,
    number.key,
    number.position,
    CASE WHEN number.sign THEN -1.0 ELSE 1.0 END
    * CASE number.exponent
        WHEN 2047 THEN CASE WHEN number.mantissa = 0 THEN 9e999 END
        WHEN 0 THEN number.mantissa * (SELECT value FROM power_of_two WHERE exponent = -1074)
        ELSE (number.mantissa + 4503599627370496)
            * (
                SELECT value FROM power_of_two
                WHERE exponent = max(min(number.exponent - 1075, 1023), -1074)
            )
    END AS logprob
FROM attempt_spans
JOIN (
    SELECT
        array_key,
        key,
        position,
        high >> 31 AS sign,
        high >> 20 & 2047 AS exponent,
        (high & 1048575) << 32 | low AS mantissa
    FROM array_elements
    WHERE kind = 'float64'
) AS number ON number.array_key BETWEEN attempt_spans.span_key * 256 AND attempt_spans.span_key * 256 + 255
WHERE number.key LIKE '%logprobs'
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
WHERE attribute.key LIKE '%logprobs' AND attribute.type = 'array' AND element.type IN ('real', 'integer');

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
