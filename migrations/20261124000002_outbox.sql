-- The outbox: the contract between whoever writes events and the relay.
--
-- Append rule: lock or change the aggregate first, insert its outbox row last. Otherwise the order of ids can contradict
-- the order of commits for one aggregate, and its events would be published in the wrong order.
SET LOCAL lock_timeout = '5s';

CREATE TABLE outbox (
    id                bigint      GENERATED ALWAYS AS IDENTITY,
    -- The cast goes through text because xid8 has no other; bigint, because xid8 has no BRIN class.
    txid              bigint      NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    lane              smallint    NOT NULL
        GENERATED ALWAYS AS ((hashtextextended(aggregate_type || '/' || aggregate_id, 0) & 15)::smallint) STORED,
    event_id          uuid        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL CONSTRAINT outbox_aggregate_version_check CHECK (aggregate_version >= 1),
    type              text        NOT NULL,
    -- json keeps the writer's bytes and is read 1.7 times as fast as jsonb.
    payload           json        NOT NULL,
    headers           jsonb       NOT NULL DEFAULT '{}'
        CONSTRAINT outbox_headers_check CHECK (jsonb_typeof(headers) = 'object'),
    occurred_at       timestamptz NOT NULL DEFAULT now(),
    -- Also the relay's way to the new rows of a lane.
    CONSTRAINT outbox_pkey PRIMARY KEY (lane, id)
) PARTITION BY RANGE (id);

-- The relay's way to rows that committed late.
CREATE INDEX outbox_txid_idx ON outbox (txid);

COMMENT ON TABLE outbox IS 'Events to publish. Append-only: never updated, never deleted row by row; whole partitions are dropped.';
COMMENT ON COLUMN outbox.id IS 'Order within a lane; says nothing across transactions by itself, since a lower id may commit later.';
COMMENT ON COLUMN outbox.txid IS 'Top-level transaction that wrote the row: how the relay finds rows that committed late.';
COMMENT ON COLUMN outbox.lane IS 'Hash of aggregate type and id, 0 to 15: all events of one aggregate are in one lane.';
COMMENT ON COLUMN outbox.event_id IS 'Identity of the event (UUID v7): the header "id" of its record, by which consumers know repeats.';
COMMENT ON COLUMN outbox.aggregate_type IS 'Kind of the thing that changed; "order" is published to the topic "orders".';
COMMENT ON COLUMN outbox.aggregate_id IS 'Which one changed: the key of its records.';
COMMENT ON COLUMN outbox.aggregate_version IS 'Number of the change, from 1 without gaps: makes order checkable by anyone.';
COMMENT ON COLUMN outbox.type IS 'What happened, for example "order.created".';
COMMENT ON COLUMN outbox.payload IS 'Value of the record, byte for byte.';
COMMENT ON COLUMN outbox.headers IS 'Object of strings: traceparent and tracestate (W3C), and the writer''s own headers.';
COMMENT ON COLUMN outbox.occurred_at IS 'Database time of the writing transaction.';

-- Makes partitions until `ahead` of them lie beyond the highest id given out. Returns how many it made.
--
-- A new partition is made as a table of its own and then attached: ATTACH takes SHARE UPDATE EXCLUSIVE on outbox, which
-- stops no writer, where CREATE TABLE ... PARTITION OF would take ACCESS EXCLUSIVE. Two callers wait for each other on the
-- advisory lock. SECURITY DEFINER, because only the owner of outbox may attach and the relay is not the owner.
CREATE FUNCTION outbox_make_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    span CONSTANT bigint := 5000000;
    last_id bigint;
    next_start bigint;
    made integer := 0;
    name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('outbox_make_partitions'));
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO last_id FROM outbox_id_seq;
    SELECT coalesce(max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''(\d+)''\)'))[1]::bigint), 1)
        INTO next_start
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox'::regclass;
    WHILE next_start <= last_id + ahead * span LOOP
        name := 'outbox_p' || next_start;
        EXECUTE format('CREATE TABLE %I (LIKE outbox INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)', name);
        EXECUTE format('ALTER TABLE outbox ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
            name, next_start, next_start + span);
        next_start := next_start + span;
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
COMMENT ON FUNCTION outbox_make_partitions IS 'Makes outbox partitions of 5,000,000 ids until the given number lies ahead; returns how many were made.';
REVOKE EXECUTE ON FUNCTION outbox_make_partitions FROM PUBLIC;

SELECT outbox_make_partitions(3);
