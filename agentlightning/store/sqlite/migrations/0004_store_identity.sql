-- What names this store, wherever its file lies and under whatever name it is opened. A backup has it too.
CREATE TABLE store_identity (
    store_id TEXT NOT NULL
);
INSERT INTO store_identity SELECT lower(hex(randomblob(16)));
