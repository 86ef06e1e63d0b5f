-- A seal names why how many answers have no log-probabilities; those that are there already do not.
ALTER TABLE seals RENAME TO seals_without;
CREATE TABLE seals (
    attempt_key INTEGER PRIMARY KEY REFERENCES attempts (attempt_key),
    time REAL NOT NULL,
    spans INTEGER NOT NULL,
    sequence_id INTEGER NOT NULL,
    late INTEGER NOT NULL,
    unproven TEXT
);
INSERT INTO seals SELECT attempt_key, time, spans, sequence_id, late, NULL FROM seals_without;
DROP TABLE seals_without;
