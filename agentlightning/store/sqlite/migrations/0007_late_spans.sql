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

-- Accounts say what became of late spans that are not stored.
ALTER TABLE accounts RENAME TO accounts_without;
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
INSERT INTO accounts
SELECT attempt_key, writer_id, revision, started, late, unattributed, closed, dropped, '{}', unstored FROM accounts_without;
DROP TABLE accounts_without;

-- A seal names how many late spans there were.
ALTER TABLE seals RENAME TO seals_without;
CREATE TABLE seals (
    attempt_key INTEGER PRIMARY KEY REFERENCES attempts (attempt_key),
    time REAL NOT NULL,
    spans INTEGER NOT NULL,
    sequence_id INTEGER NOT NULL,
    late INTEGER NOT NULL
);
INSERT INTO seals SELECT attempt_key, time, spans, sequence_id, 0 FROM seals_without;
DROP TABLE seals_without;
