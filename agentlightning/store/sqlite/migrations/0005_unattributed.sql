-- Accounts say, too, how many spans nobody could place that the attempt could have made.
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
    unstored TEXT NOT NULL,
    PRIMARY KEY (attempt_key, writer_id)
) WITHOUT ROWID;
INSERT INTO accounts
SELECT attempt_key, writer_id, revision, started, late, 0, closed, dropped, unstored FROM accounts_without;
DROP TABLE accounts_without;
