-- What a consumer group remembers in the same transaction as its effects.
SET LOCAL lock_timeout = '5s';

CREATE TABLE consumer_offsets (
    group_id    text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    next_offset bigint      NOT NULL CONSTRAINT consumer_offsets_next_offset_check CHECK (next_offset >= 0),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT consumer_offsets_pkey PRIMARY KEY (group_id, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE consumer_offsets IS 'Where each partition goes on. Moved by compare-and-set in the transaction of the effects: this, not Kafka''s committed offset, is the truth.';
COMMENT ON COLUMN consumer_offsets.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN consumer_offsets.topic IS 'Topic.';
COMMENT ON COLUMN consumer_offsets.partition IS 'Partition.';
COMMENT ON COLUMN consumer_offsets.next_offset IS 'Offset of the next record to apply.';
COMMENT ON COLUMN consumer_offsets.updated_at IS 'When it last moved.';

CREATE TABLE inbox (
    group_id    text        NOT NULL,
    event_id    uuid        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT inbox_pkey PRIMARY KEY (group_id, event_id)
);
COMMENT ON TABLE inbox IS 'Events a group has taken in: an event that is published again, at another offset, is recognised by it.';
COMMENT ON COLUMN inbox.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN inbox.event_id IS 'Header "id" of the record.';
COMMENT ON COLUMN inbox.received_at IS 'When it was taken in.';

CREATE TABLE dead_letters (
    id            bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT dead_letters_pkey PRIMARY KEY,
    group_id      text        NOT NULL,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    record_offset bigint      NOT NULL,
    record_key    bytea,
    event_id      uuid,
    event_type    text,
    headers       jsonb       NOT NULL,
    payload       bytea,
    reason        text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letters_record_key UNIQUE (group_id, topic, partition, record_offset)
);
COMMENT ON TABLE dead_letters IS 'Records that could not be decoded or that their handler refused for good.';
COMMENT ON COLUMN dead_letters.id IS 'Identity.';
COMMENT ON COLUMN dead_letters.group_id IS 'Kafka consumer group that refused it.';
COMMENT ON COLUMN dead_letters.topic IS 'Topic of the record.';
COMMENT ON COLUMN dead_letters.partition IS 'Partition of the record.';
COMMENT ON COLUMN dead_letters.record_offset IS 'Offset of the record.';
COMMENT ON COLUMN dead_letters.record_key IS 'Key of the record as it was.';
COMMENT ON COLUMN dead_letters.event_id IS 'Header "id", when there was a readable one.';
COMMENT ON COLUMN dead_letters.event_type IS 'Header "ce_type", when there was a readable one.';
COMMENT ON COLUMN dead_letters.headers IS 'Array of [name, value] in the record''s order; a value that is not UTF-8 is given as {"hex": "..."}.';
COMMENT ON COLUMN dead_letters.payload IS 'Value of the record as it was.';
COMMENT ON COLUMN dead_letters.reason IS 'Why it was refused.';
COMMENT ON COLUMN dead_letters.created_at IS 'When it was refused.';
