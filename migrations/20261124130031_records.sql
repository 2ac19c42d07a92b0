-- A record that waits is known by its place and by what it is.
--
-- A topic that was made anew has other records at the places of those that wait still. With the place alone as the key, a new record that
-- fails there would have been taken for the old one, and lost. Rows of before have the hash 0: should one of them be read again, it waits
-- twice, and the inbox knows the second for a repeat.
SET LOCAL lock_timeout = '5s';

ALTER TABLE dead_letters
    ADD COLUMN record_hash bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT dead_letters_record_key,
    ADD CONSTRAINT dead_letters_record_key UNIQUE (group_id, topic, partition, record_offset, record_hash);
COMMENT ON COLUMN dead_letters.record_hash IS 'FNV-1a (64 bits) of the record''s key, headers and value; 0: not known.';
