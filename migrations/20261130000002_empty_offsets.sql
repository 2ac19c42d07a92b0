-- Offsets may hold no record: those of aborted transactions, and the markers that end transactions. Where a partition ends with such, its
-- position moves past them too, and what is known of the record before them stays.
SET LOCAL lock_timeout = '5s';

ALTER TABLE consumer_offsets ADD COLUMN empty_from bigint;
COMMENT ON COLUMN consumer_offsets.empty_from IS 'From here to next_offset no offset holds a record; null: the record before next_offset was applied.';
