-- Where an event was when a group took it in, for the timeline of an order. Columns without a default rewrite nothing; their lock
-- on the inbox is held for a moment, and is given up after lock_timeout if a batch holds it up.
SET LOCAL lock_timeout = '5s';

ALTER TABLE inbox
    ADD COLUMN topic text,
    ADD COLUMN partition integer,
    ADD COLUMN record_offset bigint,
    ADD COLUMN record_time timestamptz;
COMMENT ON COLUMN inbox.topic IS 'Topic of the record by which the event was taken in. Null, as the next three, if it had waited in dead_letters, or was taken in before there were these columns.';
COMMENT ON COLUMN inbox.partition IS 'Its partition.';
COMMENT ON COLUMN inbox.record_offset IS 'Its offset.';
COMMENT ON COLUMN inbox.record_time IS 'Kafka''s timestamp of it: when the relay handed it to its producer.';
