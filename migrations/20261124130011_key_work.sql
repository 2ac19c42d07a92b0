-- What the processor needs to take failed events out of the inbox again, and to walk a long key's dead letters in their order.
SET LOCAL lock_timeout = '5s';

-- Elders that came late first, then by place; records without a readable version before all others.
DROP INDEX dead_letters_key_idx;
CREATE INDEX dead_letters_key_idx
    ON dead_letters (group_id, topic, record_key, aggregate_version NULLS FIRST, partition, record_offset);

GRANT DELETE ON inbox TO outrider_processor;
