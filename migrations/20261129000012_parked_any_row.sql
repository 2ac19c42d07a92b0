-- Any row of the outbox can be parked, however large its parts are and whatever its time is.
--
-- An index entry takes no more than 2,700 bytes, so keys are in the indexes by a hash. A payload that is larger than the outbox takes today
-- stays in the outbox: the parked row has its length only, and the partition of the row is kept.
SET LOCAL lock_timeout = '5s';

-- The length of the type tells where the id begins, so two keys are never the same text: 'a/b' and 'c' are not 'a' and 'b/c'. Two hashes of
-- 64 bits under seeds that nothing else uses; not MD5, which a Postgres in FIPS mode refuses.
CREATE FUNCTION relay_key_hash(aggregate_type text, aggregate_id text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
AS $$
    SELECT (lpad(to_hex(hashtextextended(octet_length(aggregate_type)::text || ':' || aggregate_type || aggregate_id, 1)), 16, '0')
        || lpad(to_hex(hashtextextended(octet_length(aggregate_type)::text || ':' || aggregate_type || aggregate_id, 2)), 16, '0'))::uuid
$$;
COMMENT ON FUNCTION relay_key_hash IS 'Hash of a key, for indexes: 128 bits of aggregate type and id. Look for a key by its lane, this, and both texts.';
-- Relays and operators call it, whatever default privileges an administrator has set.
GRANT EXECUTE ON FUNCTION relay_key_hash TO PUBLIC;

ALTER TABLE relay_parked
    ADD COLUMN key_hash uuid NOT NULL GENERATED ALWAYS AS (relay_key_hash(aggregate_type, aggregate_id)) STORED,
    ADD COLUMN payload_bytes integer,
    ALTER COLUMN payload DROP NOT NULL;
COMMENT ON COLUMN relay_parked.key_hash IS 'relay_key_hash of aggregate_type and aggregate_id.';
COMMENT ON COLUMN relay_parked.payload IS 'outbox.payload; null: it is too large and stays in the outbox. Such an event cannot be published, only discarded.';
COMMENT ON COLUMN relay_parked.payload_bytes IS 'outbox.payload_bytes; null: parked by a relay that did not know of it.';
COMMENT ON COLUMN relay_parked.headers IS 'outbox.headers; empty where these or the payload are too large.';
COMMENT ON COLUMN relay_parked.reason IS 'Why Kafka refuses it, in 1,000 characters at most; null for a later event of a key that is parked already.';

DROP INDEX relay_parked_key_idx;
-- A relay that takes a lane asks which keys of it are parked, and a retry reads a key in the order of its ids.
CREATE INDEX relay_parked_key_idx ON relay_parked (lane, key_hash, id);
-- Retention asks for rows that are still needed in the outbox.
CREATE INDEX relay_parked_reference_idx ON relay_parked (id) WHERE payload IS NULL;

ALTER TABLE relay_parked_requests
    ADD COLUMN key_hash uuid NOT NULL GENERATED ALWAYS AS (relay_key_hash(aggregate_type, aggregate_id)) STORED,
    DROP CONSTRAINT relay_parked_requests_pkey,
    ADD CONSTRAINT relay_parked_requests_pkey PRIMARY KEY (lane, key_hash);
COMMENT ON COLUMN relay_parked_requests.key_hash IS 'relay_parked.key_hash.';

-- Why a partition must stay, as before, with one more reason: an event is parked whose payload is in the partition only. And an event
-- that says it occurred in the future does not keep its partition until then: its time is not to be believed.
CREATE OR REPLACE FUNCTION outbox_keep_reason(partition regclass, retention interval) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = public, pg_temp
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    late_from bigint;
    late_running bigint[];
    found_one boolean;
BEGIN
    -- After a dump and restore the snapshots speak of another cluster's transactions, so nothing can be known of late rows. A lane
    -- that no relay has settled yet has no cluster at all.
    IF (SELECT count(*) FROM relay_lanes l JOIN pg_control_system() s ON s.system_identifier = l.system_identifier) < 16 THEN
        RETURN 'foreign';
    END IF;
    EXECUTE format('SELECT EXISTS (
        SELECT FROM relay_lanes l CROSS JOIN LATERAL (
            SELECT FROM ONLY %s o WHERE o.lane = l.lane AND o.id > l.position ORDER BY o.id LIMIT 1
        ) ahead
    )', partition) INTO found_one;
    IF found_one THEN
        RETURN 'unpublished';
    END IF;
    SELECT coalesce(min(pg_snapshot_xmax(l.seen)::text::bigint), 0) INTO late_from FROM relay_lanes l;
    SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
        FROM relay_lanes l CROSS JOIN LATERAL pg_snapshot_xip(l.seen) x (txid);
    EXECUTE format('SELECT EXISTS (
        SELECT FROM (
            SELECT a.lane, a.txid FROM ONLY %1$s a WHERE a.txid >= $1
            UNION ALL
            SELECT b.lane, b.txid FROM ONLY %1$s b WHERE b.txid < $1 AND b.txid = ANY ($2)
        ) o
        JOIN relay_lanes l ON l.lane = o.lane
        WHERE NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)
    )', partition) INTO found_one USING late_from, late_running;
    IF found_one THEN
        RETURN 'late';
    END IF;
    IF EXISTS (
        SELECT FROM outbox_partitions o JOIN relay_parked p ON p.id >= o.first_id AND p.id < o.past_id
        WHERE o.oid = partition AND p.payload IS NULL
    ) THEN
        RETURN 'parked';
    END IF;
    EXECUTE format('SELECT EXISTS (
        SELECT FROM relay_lanes l CROSS JOIN LATERAL (
            SELECT o.occurred_at FROM ONLY %s o
            WHERE o.lane = l.lane AND o.occurred_at < now() + interval ''1 day''
            ORDER BY o.id DESC LIMIT 1
        ) newest
        WHERE newest.occurred_at > now() - $1
    )', partition) INTO found_one USING retention;
    IF found_one THEN
        RETURN 'recent';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION outbox_keep_reason IS 'Why a partition of the outbox may not be dropped: foreign (cursors of another cluster), unpublished, late (committed late and not yet published), parked (a parked event has its payload here), recent (within the retention); null if it may.';

-- As before; a parked event is found by the hash of its key.
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
                o.id <= l.position AND l.seen IS NOT NULL AND pg_visible_in_snapshot(o.txid::text::xid8, l.seen) END,
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
            JOIN dead_letters x ON x.group_id = g.group_id AND x.topic = topics.topic AND x.record_key = convert_to(wanted::text, 'UTF8')
                AND x.event_id = w.event_id
        ) d ON true
        LEFT JOIN blocked_keys b ON b.group_id = d.group_id AND b.topic = d.topic AND b.record_key = d.record_key
        WHERE i.event_id IS NOT NULL OR d.id IS NOT NULL
    ) k ON true
    ORDER BY w.version
$$;
