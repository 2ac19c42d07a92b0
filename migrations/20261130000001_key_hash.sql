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

-- As before, but for the look-ups by the hash.
CREATE OR REPLACE FUNCTION order_timeline(wanted bigint)
RETURNS TABLE (
    version bigint, from_status text, to_status text, event_id uuid, occurred_at timestamptz, reason text,
    outbox_id bigint, traceparent text, committed_at timestamptz, published boolean, parked_at timestamptz, parked_reason text,
    consumers jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
    WITH current AS MATERIALIZED (
        SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax
    ), changes AS MATERIALIZED (
        SELECT t.*, t.xmin::text::bigint AS xid32 FROM order_transitions t WHERE t.order_id = wanted
    ), written AS MATERIALIZED (
        -- The full id of the latest transaction that ends in these 32 bits.
        SELECT c.*, (current.xmax & ~4294967295) + c.xid32
            - CASE WHEN c.xid32 > (current.xmax & 4294967295) THEN 4294967296 ELSE 0 END AS xid
        FROM changes c CROSS JOIN current
    )
    SELECT w.version, w.from_status, w.to_status, w.event_id, w.occurred_at, w.reason,
        o.id, o.headers ->> 'traceparent',
        CASE WHEN o.txid > current.xmax - 2000000000 AND current_setting('track_commit_timestamp') = 'on'
            THEN pg_xact_commit_timestamp(o.txid::text::xid8::xid) END,
        CASE WHEN p.id IS NOT NULL THEN false
            WHEN o.id IS NOT NULL THEN
                o.id <= l.position AND l.seen IS NOT NULL AND pg_visible_in_snapshot(o.txid::text::xid8, l.seen)
                AND (waits.lane IS NULL
                    OR (o.id <= waits.position AND waits.seen IS NOT NULL AND pg_visible_in_snapshot(o.txid::text::xid8, waits.seen))) END,
        p.parked_at, p.reason,
        coalesce(k.consumers, '[]')
    FROM written w
    CROSS JOIN current
    CROSS JOIN LATERAL (
        SELECT (hashtextextended('order/' || wanted, 0) & 15)::smallint AS lane,
            CASE WHEN substr(w.event_id::text, 15, 1) = '7' THEN
                (timestamp '1970-01-01' + make_interval(secs =>
                    ('x' || translate(substr(w.event_id::text, 1, 13), '-', ''))::bit(48)::bigint / 1000.0))::date
                ELSE (w.occurred_at AT TIME ZONE 'UTC')::date END AS day
    ) known
    JOIN relay_lanes l ON l.lane = known.lane
    LEFT JOIN relay_waiting waits ON waits.lane = known.lane AND waits.aggregate_type = 'order'
    LEFT JOIN LATERAL (
        SELECT x.id, x.txid, x.headers FROM outbox x
        WHERE x.txid <= w.xid AND x.txid > w.xid - 10000 AND x.event_id = w.event_id
        ORDER BY x.txid DESC LIMIT 1
    ) o ON true
    LEFT JOIN LATERAL (
        SELECT x.id, x.parked_at, x.reason FROM relay_parked x
        WHERE x.lane = known.lane AND x.key_hash = relay_key_hash('order', wanted::text)
            AND x.aggregate_type = 'order' AND x.aggregate_id = wanted::text AND x.event_id = w.event_id
    ) p ON true
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object(
                'group', g.group_id, 'state', CASE WHEN d.id IS NULL THEN 'taken in' ELSE coalesce(b.state, 'waiting') END,
                'taken_in_at', i.received_at, 'topic', coalesce(d.topic, i.topic), 'partition', coalesce(d.partition, i.partition),
                'offset', coalesce(d.record_offset, i.record_offset), 'record_time', i.record_time,
                'attempts', CASE WHEN d.reason IS NOT NULL THEN b.attempts END, 'reason', d.reason,
                'first_failed_at', CASE WHEN d.reason IS NOT NULL THEN b.first_failed_at END,
                'last_failed_at', CASE WHEN d.reason IS NOT NULL THEN b.last_failed_at END,
                'next_attempt_at', CASE WHEN d.reason IS NOT NULL THEN b.next_attempt_at END)
            ORDER BY g.group_id, d.topic) AS consumers
        FROM (SELECT DISTINCT c.group_id FROM consumer_offsets c) g
        LEFT JOIN inbox i ON i.group_id = g.group_id AND i.event_id = w.event_id AND i.occurred_on = known.day
        LEFT JOIN LATERAL (
            SELECT x.* FROM (SELECT DISTINCT c.topic FROM consumer_offsets c WHERE c.group_id = g.group_id) topics
            JOIN dead_letters x ON x.group_id = g.group_id AND x.topic = topics.topic AND x.key_hash = sha256(convert_to(wanted::text, 'UTF8'))
                AND x.event_id = w.event_id
        ) d ON true
        LEFT JOIN blocked_keys b ON b.group_id = d.group_id AND b.topic = d.topic AND b.key_hash = d.key_hash
        WHERE i.event_id IS NOT NULL OR d.id IS NOT NULL
    ) k ON true
    ORDER BY w.version
$$;
