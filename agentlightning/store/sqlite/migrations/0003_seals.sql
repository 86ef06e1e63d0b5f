-- The word that an attempt is complete: how many spans it has, and the highest sequence id among them.
CREATE TABLE seals (
    attempt_key INTEGER PRIMARY KEY REFERENCES attempts (attempt_key),
    time REAL NOT NULL,
    spans INTEGER NOT NULL,
    sequence_id INTEGER NOT NULL
);
