-- What a support desk asks of one order: each of its changes on its way through outbox, Kafka and consumers.
SET LOCAL lock_timeout = '5s';

-- Tables of the relay and of the processor are read as their owner, of one order only, so that the api needs no grant on them. Whoever
-- calls it decides who may see the order.
--
-- An event is found in the outbox by the transaction that wrote it, which is that of the transition: its id is in the system column xmin.
-- The processor writes under a savepoint, and then xmin is the savepoint's id, which is a little higher than the transaction's; so it
-- is looked for from there downwards, over (txid, id), and known by its event id. After a dump and restore xmin says nothing, and the
-- event is not found.
--
-- Nothing is told that is not written somewhere: null is "not known", or "not yet".
CREATE FUNCTION order_timeline(wanted bigint)
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
        WHERE x.lane = known.lane AND x.aggregate_type = 'order' AND x.aggregate_id = wanted::text AND x.event_id = w.event_id
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
COMMENT ON FUNCTION order_timeline IS 'What is known of each change of an order: its event in the outbox, whether relays have published it, and what each consumer group did with it.';
REVOKE EXECUTE ON FUNCTION order_timeline FROM PUBLIC;
GRANT EXECUTE ON FUNCTION order_timeline TO outrider_api;
