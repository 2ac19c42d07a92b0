-- A key of any length can be blocked, and its records can wait.
--
-- An index entry takes no more than 2,700 bytes, and Kafka sets no bound to a record's key: so keys are in the indexes by their SHA-256. A
-- record that is no event of ours has a key of its own meaning: it waits by itself, and its key is kept beside.
SET LOCAL lock_timeout = '5s';

-- The name of the constraint stays: a processor of before names it.
ALTER TABLE blocked_keys
    ADD COLUMN key_hash bytea NOT NULL GENERATED ALWAYS AS (sha256(record_key)) STORED,
    DROP CONSTRAINT blocked_keys_pkey,
    ADD CONSTRAINT blocked_keys_pkey PRIMARY KEY (group_id, topic, key_hash);
COMMENT ON COLUMN blocked_keys.key_hash IS 'SHA-256 of record_key: what a key is looked up by.';

DROP INDEX dead_letters_key_idx;
ALTER TABLE dead_letters
    ADD COLUMN key_hash bytea GENERATED ALWAYS AS (sha256(record_key)) STORED,
    ADD COLUMN unordered_key bytea;
COMMENT ON COLUMN dead_letters.record_key IS 'Key of the record as it was, in whose order it waits; null for a record that waits by itself.';
COMMENT ON COLUMN dead_letters.key_hash IS 'SHA-256 of record_key: what the records of a key are looked up by.';
COMMENT ON COLUMN dead_letters.unordered_key IS 'Key, as it was, of a record without a version, which waits by itself: it is no change of an aggregate, and stands in no way of one.';
-- Predecessors that came late first, then by place; records without a readable version before all others.
CREATE INDEX dead_letters_key_idx
    ON dead_letters (group_id, topic, key_hash, aggregate_version NULLS FIRST, partition, record_offset);
