-- Events that wait because their topic takes no records: they are left behind in the outbox, type by type, while all others flow.
SET LOCAL lock_timeout = '5s';

CREATE TABLE relay_waiting (
    lane           smallint    NOT NULL CONSTRAINT relay_waiting_lane_check CHECK (lane BETWEEN 0 AND 15),
    aggregate_type text        NOT NULL CONSTRAINT relay_waiting_aggregate_type_check CHECK (octet_length(aggregate_type) <= 1000),
    position       bigint      NOT NULL,
    seen           pg_snapshot,
    topic          text        NOT NULL,
    reason         text        NOT NULL CONSTRAINT relay_waiting_reason_check CHECK (length(reason) <= 1000),
    since          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relay_waiting_pkey PRIMARY KEY (lane, aggregate_type),
    CONSTRAINT relay_waiting_seen_check CHECK (seen IS NOT NULL OR position = 0)
) WITH (fillfactor = 50);
COMMENT ON TABLE relay_waiting IS 'Aggregate types whose topic takes no records now, with a cursor of their own in each lane: the lane goes on without them. The relay that holds the lane tries the topic again and again, publishes what has waited in order, and deletes the row.';
COMMENT ON COLUMN relay_waiting.lane IS 'relay_lanes.lane.';
COMMENT ON COLUMN relay_waiting.aggregate_type IS 'outbox.aggregate_type.';
COMMENT ON COLUMN relay_waiting.position IS 'As relay_lanes.position, for the rows of this type.';
COMMENT ON COLUMN relay_waiting.seen IS 'As relay_lanes.seen, for the rows of this type.';
COMMENT ON COLUMN relay_waiting.topic IS 'Where its events go.';
COMMENT ON COLUMN relay_waiting.reason IS 'What the topic was found to be lacking when the type began to wait.';
COMMENT ON COLUMN relay_waiting.since IS 'When the type began to wait.';

GRANT SELECT, INSERT, UPDATE (position, seen), DELETE ON relay_waiting TO outrider_relay;
GRANT SELECT ON relay_waiting TO outrider_operator;
