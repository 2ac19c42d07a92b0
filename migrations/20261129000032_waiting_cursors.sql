-- What looks at the relays' cursors looks at those of types that wait for their topic, too: retention, and an order's timeline.
SET LOCAL lock_timeout = '5s';

-- Why a partition must stay, with two more reasons: a parked event has its payload in the partition only, and events wait for their topic.
-- An event that says it occurred in the future does not keep its partition until then: its time is not to be believed.
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
    -- Of a type that waits for its topic, rows that its lane has passed over are still to be published. They were written by transactions
    -- that its cursor did not see: asked is for any row of such a transaction, since to look for the type would be to look at them all.
    IF EXISTS (SELECT FROM relay_waiting) THEN
        SELECT coalesce(min(pg_snapshot_xmax(w.seen)::text::bigint), 0) INTO late_from
            FROM relay_waiting w WHERE w.seen IS NOT NULL;
        SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
            FROM relay_waiting w CROSS JOIN LATERAL pg_snapshot_xip(w.seen) x (txid);
        EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %1$s a WHERE a.txid >= $1)
            OR EXISTS (SELECT FROM ONLY %1$s b WHERE b.txid < $1 AND b.txid = ANY ($2))
            OR EXISTS (SELECT FROM relay_waiting w CROSS JOIN LATERAL (
                SELECT FROM ONLY %1$s o WHERE o.lane = w.lane AND o.id > w.position LIMIT 1
            ) ahead)', partition) INTO found_one USING late_from, late_running;
        IF found_one THEN
            RETURN 'waiting';
        END IF;
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
COMMENT ON FUNCTION outbox_keep_reason IS 'Why a partition of the outbox may not be dropped: foreign (cursors of another cluster), unpublished, late (committed late and not yet published), parked (a parked event has its payload here), waiting (events wait for their topic, and may be here), recent (within the retention); null if it may.';

-- As before; a parked event is found by the hash of its key, and what waits for its topic is not published.
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
            JOIN dead_letters x ON x.group_id = g.group_id AND x.topic = topics.topic AND x.record_key = convert_to(wanted::text, 'UTF8')
                AND x.event_id = w.event_id
        ) d ON true
        LEFT JOIN blocked_keys b ON b.group_id = d.group_id AND b.topic = d.topic AND b.record_key = d.record_key
        WHERE i.event_id IS NOT NULL OR d.id IS NOT NULL
    ) k ON true
    ORDER BY w.version
$$;
