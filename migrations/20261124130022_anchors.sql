-- What the last applied record of a partition was, so that a topic that was made anew is known even when it is longer than before.
SET LOCAL lock_timeout = '5s';

ALTER TABLE consumer_offsets
    ADD COLUMN anchor_offset bigint,
    ADD COLUMN anchor_hash bigint,
    ADD COLUMN anchor_time_ms bigint,
    ADD CONSTRAINT consumer_offsets_anchor_check
        CHECK ((anchor_offset IS NULL) = (anchor_hash IS NULL) AND (anchor_hash IS NOT NULL OR anchor_time_ms IS NULL));
COMMENT ON COLUMN consumer_offsets.anchor_offset IS 'Offset of the last record that was applied. Counts only while it is the one before next_offset, so whoever sets that by hand need not care.';
COMMENT ON COLUMN consumer_offsets.anchor_hash IS 'FNV-1a (64 bits) of that record''s key, headers and value.';
COMMENT ON COLUMN consumer_offsets.anchor_time_ms IS 'Kafka''s timestamp of that record, milliseconds since 1970; null if it has none.';

GRANT INSERT ON consumer_offsets TO outrider_operator;
