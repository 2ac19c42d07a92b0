-- Functions that run with their owner's rights name every object with its schema, and look for nothing in `public`.
--
-- Where a role may create objects there, a function of its own, with arguments that fit better than those of Postgres' own (`to_char(date,
-- text)`), was called in its place, and so had the rights of the owner. The bodies are as before, but for the names,
-- and for backslashes in strings: a body is read in the session of its caller, and where that has standard_conforming_strings off they
-- were escapes, so that partitions were made twice and a producer's trace was lost.
SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION idempotency_drop_partition()
RETURNS TABLE (name text, outcome text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '150ms'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    target record;
    is_empty boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('idempotency_partitions')) THEN
        RETURN;
    END IF;
    SELECT p.oid::regclass AS relation, p.name INTO target FROM public.idempotency_partitions p
        WHERE p.day < public.idempotency_day(now()) - 1 ORDER BY p.day LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    name := target.name;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM ONLY %s)', target.relation) INTO is_empty;
    BEGIN
        IF is_empty THEN
            EXECUTE format('DROP TABLE %s', target.relation);
            outcome := 'dropped';
        ELSE
            EXECUTE format('TRUNCATE TABLE ONLY %s', target.relation);
            outcome := 'emptied';
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            outcome := 'busy';
    END;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION idempotency_make_partition(days_ahead integer)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    today CONSTANT date := public.idempotency_day(now());
    wanted date;
    name text;
BEGIN
    IF days_ahead IS NULL OR days_ahead NOT BETWEEN 0 AND 30 THEN
        RAISE EXCEPTION 'idempotency_make_partition: days_ahead must be from 0 to 30, and not %', coalesce(days_ahead::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('idempotency_partitions'));
    SELECT today + d.ahead INTO wanted FROM generate_series(0, days_ahead) d (ahead)
        WHERE NOT EXISTS (SELECT FROM public.idempotency_partitions p WHERE p.day = today + d.ahead)
        ORDER BY d.ahead LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    name := 'idempotency_keys_p' || to_char(wanted, 'YYYYMMDD');
    EXECUTE format('CREATE TABLE public.%I (LIKE public.idempotency_keys INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE public.idempotency_keys ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name, wanted, wanted + 1);
    RETURN name;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN RETURN NULL; -- Next time.
END $$;

CREATE OR REPLACE FUNCTION inbox_clean(rows_max integer)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    cutoff CONSTANT timestamptz := public.inbox_cutoff();
    deleted bigint;
    sum bigint := 0;
BEGIN
    IF rows_max IS NULL OR rows_max NOT BETWEEN 1 AND 1000000 THEN
        RAISE EXCEPTION 'inbox_clean: rows_max must be from 1 to 1000000, and not %', coalesce(rows_max::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cutoff IS NULL OR NOT pg_try_advisory_xact_lock(hashtext('inbox_clean')) THEN
        RETURN 0;
    END IF;
    DELETE FROM ONLY public.inbox_undated WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM ONLY public.inbox_undated i WHERE i.received_at < cutoff ORDER BY i.received_at LIMIT rows_max
        FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    sum := sum + deleted;
    DELETE FROM ONLY public.inbox_default WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM ONLY public.inbox_default i WHERE i.received_at < cutoff ORDER BY i.received_at LIMIT rows_max
        FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN sum + deleted;
END $$;

CREATE OR REPLACE FUNCTION inbox_cutoff()
RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN bool_and(retention IS NOT NULL) THEN now() - max(retention) - interval '1 hour' END
    FROM public.inbox_groups
    WHERE retention IS NULL OR seen_at > now() - retention - interval '1 day'
$$;

CREATE OR REPLACE FUNCTION inbox_drop_partition()
RETURNS TABLE (name text, outcome text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '150ms'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    cutoff CONSTANT timestamptz := public.inbox_cutoff();
    target record;
    is_empty boolean;
BEGIN
    -- In the other levels all statements see the snapshot of the first one, and with it not what was committed before our locks.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'inbox_drop_partition must be called in READ COMMITTED';
    END IF;
    IF cutoff IS NULL OR NOT pg_try_advisory_xact_lock(hashtext('inbox_partitions')) THEN
        RETURN;
    END IF;
    -- Not those that inbox_make_partition would make again.
    SELECT p.oid::regclass AS relation, p.name INTO target FROM public.inbox_partitions p
        WHERE p.occurred_on < (cutoff AT TIME ZONE 'UTC')::date - 1 AND NOT public.inbox_is_needed(p.oid, cutoff)
        ORDER BY p.occurred_on LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    name := target.name;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM ONLY %s)', target.relation) INTO is_empty;
    BEGIN
        IF is_empty THEN
            LOCK TABLE ONLY public.inbox IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', target.relation);
            IF public.inbox_is_needed(target.relation, cutoff) THEN
                RETURN;
            END IF;
            EXECUTE format('DROP TABLE %s', target.relation);
            outcome := 'dropped';
        ELSE
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', target.relation);
            IF public.inbox_is_needed(target.relation, cutoff) THEN
                RETURN;
            END IF;
            EXECUTE format('TRUNCATE TABLE ONLY %s', target.relation);
            outcome := 'emptied';
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            outcome := 'busy';
    END;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION inbox_is_needed(partition regclass, cutoff timestamptz)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    found_one boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s i WHERE i.received_at >= $1)', partition)
        INTO found_one USING cutoff;
    RETURN found_one;
END $$;

CREATE OR REPLACE FUNCTION inbox_make_partition()
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '150ms'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    today CONSTANT date := (now() AT TIME ZONE 'UTC')::date;
    -- While no group has said for how long, as for the default of seven days.
    first_day CONSTANT date :=
        greatest(coalesce((public.inbox_cutoff() AT TIME ZONE 'UTC')::date - 1, today - 8), today - 60);
    wanted date;
    name text;
    crowd bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('inbox_partitions')) THEN
        RETURN NULL;
    END IF;
    -- Those that are filled next come first.
    FOR wanted IN
        SELECT d.day::date FROM generate_series(first_day, today + 2, interval '1 day') d (day)
        WHERE NOT EXISTS (SELECT FROM public.inbox_partitions p WHERE p.occurred_on = d.day::date)
        ORDER BY d.day DESC
    LOOP
        name := 'inbox_p' || to_char(wanted, 'YYYYMMDD');
        BEGIN
            LOCK TABLE ONLY public.inbox_default IN ACCESS EXCLUSIVE MODE;
            SELECT count(*) INTO crowd
                FROM (SELECT FROM ONLY public.inbox_default d WHERE d.occurred_on = wanted LIMIT 50001) crowded;
            CONTINUE WHEN crowd > 50000;
            EXECUTE format('CREATE TABLE public.%I (LIKE public.inbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
            IF crowd > 0 THEN
                EXECUTE format('WITH moved AS (DELETE FROM ONLY public.inbox_default d WHERE d.occurred_on = $1 RETURNING d.*)
                    INSERT INTO public.%I SELECT * FROM moved ORDER BY received_at', name) USING wanted;
            END IF;
            EXECUTE format('ALTER TABLE public.inbox ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name, wanted, wanted + 1);
            RETURN name;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected THEN RETURN NULL; -- Next time.
        END;
    END LOOP;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION inbox_take_out(group_of text, event_ids uuid[], days date[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    event record;
BEGIN
    FOR event IN SELECT * FROM unnest(event_ids, days) AS given (id, day) LOOP
        DELETE FROM public.inbox WHERE group_id = group_of AND event_id = event.id AND occurred_on = event.day;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION order_timeline(wanted bigint)
RETURNS TABLE (
    version bigint, from_status text, to_status text, event_id uuid, occurred_at timestamptz, reason text,
    outbox_id bigint, traceparent text, committed_at timestamptz, published boolean, parked_at timestamptz, parked_reason text,
    consumers jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
    WITH current AS MATERIALIZED (
        SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax
    ), changes AS MATERIALIZED (
        SELECT t.*, t.xmin::text::bigint AS xid32 FROM public.order_transitions t WHERE t.order_id = wanted
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
    JOIN public.relay_lanes l ON l.lane = known.lane
    LEFT JOIN public.relay_waiting waits ON waits.lane = known.lane AND waits.aggregate_type = 'order'
    LEFT JOIN LATERAL (
        SELECT x.id, x.txid, x.headers FROM public.outbox x
        WHERE x.txid <= w.xid AND x.txid > w.xid - 10000 AND x.event_id = w.event_id
        ORDER BY x.txid DESC LIMIT 1
    ) o ON true
    LEFT JOIN LATERAL (
        SELECT x.id, x.parked_at, x.reason FROM public.relay_parked x
        WHERE x.lane = known.lane AND x.key_hash = public.relay_key_hash('order', wanted::text)
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
        FROM (SELECT DISTINCT c.group_id FROM public.consumer_offsets c) g
        LEFT JOIN public.inbox i ON i.group_id = g.group_id AND i.event_id = w.event_id AND i.occurred_on = known.day
        LEFT JOIN LATERAL (
            SELECT x.* FROM (SELECT DISTINCT c.topic FROM public.consumer_offsets c WHERE c.group_id = g.group_id) topics
            JOIN public.dead_letters x ON x.group_id = g.group_id AND x.topic = topics.topic AND x.key_hash = sha256(convert_to(wanted::text, 'UTF8'))
                AND x.event_id = w.event_id
        ) d ON true
        LEFT JOIN public.blocked_keys b ON b.group_id = d.group_id AND b.topic = d.topic AND b.key_hash = d.key_hash
        WHERE i.event_id IS NOT NULL OR d.id IS NOT NULL
    ) k ON true
    ORDER BY w.version
$$;

CREATE OR REPLACE FUNCTION outbox_append(
    aggregate_type          text,
    aggregate_id            text,
    type                    text,
    payload                 json,
    headers                 jsonb  DEFAULT '{}',
    INOUT aggregate_version bigint DEFAULT NULL,
    INOUT event_id          uuid   DEFAULT NULL,
    OUT id                  bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given CONSTANT bigint := outbox_append.aggregate_version;
    last bigint;
BEGIN
    PERFORM public.outbox_refuse_bounds(outbox_append.aggregate_type, outbox_append.aggregate_id, outbox_append.type, outbox_append.payload,
        coalesce(outbox_append.headers, '{}'));
    PERFORM public.outbox_refuse_producer(outbox_append.aggregate_type);
    IF given < 1 THEN
        RAISE EXCEPTION 'outbox_append: aggregate_version must be 1 or more, and not %', given
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version';
    END IF;

    -- The lock is taken also when the condition does not hold and nothing is updated.
    INSERT INTO public.outbox_versions AS counter (aggregate_type, aggregate_id, version)
    VALUES (outbox_append.aggregate_type, outbox_append.aggregate_id, 1)
    ON CONFLICT ON CONSTRAINT outbox_versions_pkey DO UPDATE
        SET version = counter.version + 1
        WHERE given IS NULL OR given - 1 = counter.version
    RETURNING counter.version INTO outbox_append.aggregate_version;
    -- Without a counter the version is 1; a statement that ends in an error leaves no counter behind.
    IF NOT FOUND OR outbox_append.aggregate_version <> given THEN
        IF NOT FOUND THEN
            SELECT counter.version INTO last FROM public.outbox_versions counter
                WHERE counter.aggregate_type = outbox_append.aggregate_type AND counter.aggregate_id = outbox_append.aggregate_id;
        END IF;
        IF given <= last THEN
            RAISE EXCEPTION 'outbox_append: version % was given, but % % has had version % already', given,
                    outbox_append.aggregate_type, outbox_append.aggregate_id, last
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version',
                    HINT = 'Lock or change the aggregate first, draw its version then, and append last.';
        END IF;
        RAISE EXCEPTION 'outbox_append: version % was given, but the next one of % % is %', given,
                outbox_append.aggregate_type, outbox_append.aggregate_id, coalesce(last, 0) + 1
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version',
                HINT = 'Versions have no gaps. If the ones between were inserted without outbox_append, let the owner of the tables set outbox_versions.version.';
    END IF;

    INSERT INTO public.outbox AS written (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
    VALUES (coalesce(outbox_append.event_id, public.outbox_uuid_v7()), outbox_append.aggregate_type, outbox_append.aggregate_id,
        outbox_append.aggregate_version, outbox_append.type, outbox_append.payload, coalesce(outbox_append.headers, '{}'))
    RETURNING written.event_id, written.id INTO outbox_append.event_id, outbox_append.id;
END $$;

CREATE OR REPLACE FUNCTION outbox_debezium_write()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- java.util.Properties puts a backslash before '=' and ':' in a value.
    context CONSTANT text := replace(replace(NEW.tracingspancontext, chr(92) || '=', '='), chr(92) || ':', ':');
    headers CONSTANT jsonb := jsonb_strip_nulls(jsonb_build_object(
        'traceparent', substring(context FROM '(?n)^[[:space:]]*traceparent[[:space:]]*[=:][[:space:]]*([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})[[:space:]]*$'),
        'tracestate', substring(context FROM '(?n)^[[:space:]]*tracestate[[:space:]]*[=:][[:space:]]*([^[:space:]].*?)[[:space:]]*$'),
        'timestamp', NEW."timestamp"));
BEGIN
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        RAISE EXCEPTION 'outbox_debezium: events are never changed' USING ERRCODE = 'feature_not_supported';
    END IF;
    SELECT appended.event_id INTO NEW.id
        FROM public.outbox_append(NEW.aggregatetype, NEW.aggregateid, NEW.type, NEW.payload::json, headers, event_id => NEW.id) appended;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION outbox_drop_partitions(retention interval)
RETURNS TABLE (name text, outcome text, pid integer)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '150ms'
AS $$
DECLARE
    target record;
    last_id bigint;
    before text[];
BEGIN
    -- An infinite interval is outside of it too. By the epoch, since a year has 360 days where intervals are compared, and 365.25 here.
    IF retention IS NULL OR extract(epoch FROM retention) NOT BETWEEN 0 AND 36525 * 86400.0 THEN
        RAISE EXCEPTION 'outbox_drop_partitions: retention must be from 0 to 100 years, and not %', coalesce(retention::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- In the other levels all statements see the snapshot of the first one, and with it not what was committed before our locks.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'outbox_drop_partitions must be called in READ COMMITTED';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox_drop_partitions')) THEN
        RETURN;
    END IF;
    -- The next id is at most one above the last one, so a partition that ends below the last one gets no more ids.
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO last_id FROM public.outbox_id_seq s;
    SELECT p.oid::regclass AS relation, p.name INTO target
        FROM public.outbox_partitions p WHERE p.past_id <= last_id ORDER BY p.past_id LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    name := target.name;
    -- First without any lock, so that a partition that has to stay is left alone.
    outcome := public.outbox_keep_reason(target.relation, retention);
    IF outcome IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(h.holder) INTO before FROM public.outbox_lock_holders(target.relation) h;
    IF before IS NOT NULL THEN
        PERFORM pg_sleep(0.3);
        SELECT 'held', h.pid INTO outcome, pid FROM public.outbox_lock_holders(target.relation) h
            WHERE h.holder = ANY (before) ORDER BY h.pid LIMIT 1;
        IF FOUND THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    BEGIN
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', target.relation);
        outcome := public.outbox_keep_reason(target.relation, retention);
        IF outcome IS NULL THEN
            LOCK TABLE ONLY public.outbox IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', target.relation);
            EXECUTE format('DROP TABLE %s', target.relation);
            outcome := 'dropped';
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            outcome := 'busy';
    END;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION outbox_foreign_row(OUT id bigint, OUT txid bigint, OUT next_txid bigint)
RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT o.id, o.txid, pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    FROM (
        (SELECT a.id, a.txid FROM public.outbox a
         WHERE a.txid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY a.txid DESC LIMIT 1)
        UNION ALL
        (SELECT b.id, b.txid FROM public.outbox b
         WHERE b.txid = ANY (ARRAY(SELECT x.txid::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) x (txid))) LIMIT 1)
    ) o
    -- A transaction sees its own rows.
    WHERE o.txid IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint
    LIMIT 1
$$;

CREATE OR REPLACE FUNCTION outbox_is_producer(role name, aggregate_type text)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM public.outbox_producers p
        WHERE p.aggregate_type = outbox_is_producer.aggregate_type
            AND CASE
                WHEN pg_get_userbyid(p.role_oid) = p.role_name THEN pg_has_role(outbox_is_producer.role, p.role_oid, 'USAGE')
                WHEN p.system_identifier <> (SELECT s.system_identifier FROM pg_control_system() s)
                    THEN pg_has_role(outbox_is_producer.role, to_regrole(quote_ident(p.role_name)), 'USAGE')
            END
    )
$$;

CREATE OR REPLACE FUNCTION outbox_keep_reason(partition regclass, retention interval)
RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
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
    IF (SELECT count(*) FROM public.relay_lanes l JOIN pg_control_system() s ON s.system_identifier = l.system_identifier) < 16
        OR EXISTS (SELECT FROM public.outbox_foreign_row()) THEN
        RETURN 'foreign';
    END IF;
    EXECUTE format('SELECT EXISTS (
        SELECT FROM public.relay_lanes l CROSS JOIN LATERAL (
            SELECT FROM ONLY %s o WHERE o.lane = l.lane AND o.id > l.position ORDER BY o.id LIMIT 1
        ) ahead
    )', partition) INTO found_one;
    IF found_one THEN
        RETURN 'unpublished';
    END IF;
    SELECT coalesce(min(pg_snapshot_xmax(l.seen)::text::bigint), 0) INTO late_from FROM public.relay_lanes l;
    SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
        FROM public.relay_lanes l CROSS JOIN LATERAL pg_snapshot_xip(l.seen) x (txid);
    EXECUTE format('SELECT EXISTS (
        SELECT FROM (
            SELECT a.lane, a.txid FROM ONLY %1$s a WHERE a.txid >= $1
            UNION ALL
            SELECT b.lane, b.txid FROM ONLY %1$s b WHERE b.txid < $1 AND b.txid = ANY ($2)
        ) o
        JOIN public.relay_lanes l ON l.lane = o.lane
        WHERE NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)
    )', partition) INTO found_one USING late_from, late_running;
    IF found_one THEN
        RETURN 'late';
    END IF;
    IF EXISTS (
        SELECT FROM public.outbox_partitions o JOIN public.relay_parked p ON p.id >= o.first_id AND p.id < o.past_id
        WHERE o.oid = partition AND p.payload IS NULL
    ) THEN
        RETURN 'parked';
    END IF;
    -- Of a type that waits for its topic, rows that its lane has passed over are still to be published. They were written by transactions
    -- that its cursor did not see: asked is for any row of such a transaction, since to look for the type would be to look at them all.
    IF EXISTS (SELECT FROM public.relay_waiting) THEN
        SELECT coalesce(min(pg_snapshot_xmax(w.seen)::text::bigint), 0) INTO late_from
            FROM public.relay_waiting w WHERE w.seen IS NOT NULL;
        SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
            FROM public.relay_waiting w CROSS JOIN LATERAL pg_snapshot_xip(w.seen) x (txid);
        EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %1$s a WHERE a.txid >= $1)
            OR EXISTS (SELECT FROM ONLY %1$s b WHERE b.txid < $1 AND b.txid = ANY ($2))
            OR EXISTS (SELECT FROM public.relay_waiting w CROSS JOIN LATERAL (
                SELECT FROM ONLY %1$s o WHERE o.lane = w.lane AND o.id > w.position LIMIT 1
            ) ahead)', partition) INTO found_one USING late_from, late_running;
        IF found_one THEN
            RETURN 'waiting';
        END IF;
    END IF;
    EXECUTE format('SELECT EXISTS (
        SELECT FROM public.relay_lanes l CROSS JOIN LATERAL (
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

CREATE OR REPLACE FUNCTION outbox_lock_holders(partition regclass)
RETURNS TABLE (holder text, pid integer)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT l.virtualtransaction, l.pid
    FROM pg_locks l
    JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'relation' AND l.relation IN ('public.outbox'::regclass, partition)
        AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;

CREATE OR REPLACE FUNCTION outbox_make_partitions(ahead integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    span CONSTANT bigint := 5000000;
    last_id bigint;
    next_start bigint;
    made integer := 0;
    name text;
BEGIN
    IF ahead IS NULL OR ahead NOT BETWEEN 1 AND 10 THEN
        RAISE EXCEPTION 'outbox_make_partitions: ahead must be from 1 to 10, and not %', coalesce(ahead::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('outbox_make_partitions'));
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO last_id FROM public.outbox_id_seq;
    SELECT coalesce(max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO [(]''([0-9]+)''[)]'))[1]::bigint), 1)
        INTO next_start
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.outbox'::regclass;
    WHILE next_start <= last_id + ahead * span LOOP
        name := 'outbox_p' || next_start;
        EXECUTE format('CREATE TABLE public.%I (LIKE public.outbox INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)', name);
        EXECUTE format('ALTER TABLE public.outbox ATTACH PARTITION public.%I FOR VALUES FROM (%s) TO (%s)',
            name, next_start, next_start + span);
        next_start := next_start + span;
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

CREATE OR REPLACE FUNCTION outbox_refuse_bounds(aggregate_type text, aggregate_id text, type text, payload json, headers jsonb)
RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names CONSTANT text[] := ARRAY['aggregate_type', 'aggregate_id', 'type', 'headers', 'payload'];
    limits CONSTANT integer[] := ARRAY[200, 1000, 250, 32768, 16777216];
    lengths CONSTANT integer[] := ARRAY[octet_length(aggregate_type), octet_length(aggregate_id), octet_length(type),
        octet_length(headers::text), octet_length(payload::text)];
BEGIN
    FOR i IN 1 .. cardinality(names) LOOP
        IF coalesce(lengths[i], 0) = 0 THEN
            RAISE EXCEPTION 'outbox_append: % must not be null or empty', names[i]
                USING ERRCODE = 'invalid_parameter_value', COLUMN = names[i];
        END IF;
        IF lengths[i] > limits[i] THEN
            RAISE EXCEPTION 'outbox_append: % has % bytes, and at most % are allowed', names[i], lengths[i], limits[i]
                USING ERRCODE = 'invalid_parameter_value', COLUMN = names[i];
        END IF;
    END LOOP;
    IF jsonb_typeof(headers) <> 'object' THEN
        RAISE EXCEPTION 'outbox_append: headers must be a JSON object, such as {"traceparent": "..."}, and not of type %', jsonb_typeof(headers)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'headers';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION outbox_refuse_producer(aggregate_type text)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    caller CONSTANT name := coalesce(nullif(current_setting('role'), 'none')::name, session_user);
BEGIN
    IF aggregate_type = 'order' THEN
        RAISE EXCEPTION 'outbox_append: role % may not append events of type order, which is reserved for the api and the processor', caller
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'aggregate_type',
                HINT = 'Change orders by the api, or choose another aggregate type for events of your own.';
    END IF;
    IF NOT public.outbox_is_producer(caller, aggregate_type) AND NOT pg_has_role(caller, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'outbox_append: role % may not append events of type %', caller, aggregate_type
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'aggregate_type',
                HINT = format('Let an operator run: outrider producers grant %s %s', quote_ident(caller), quote_ident(aggregate_type));
    END IF;
END $$;

CREATE OR REPLACE FUNCTION relay_reanchor_begin()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own CONSTANT bigint := pg_current_xact_id()::text::bigint;
    late_from bigint;
    late_running bigint[];
BEGIN
    -- Relays settle in here. One that runs all the same waits, and finds then that its lanes were taken.
    LOCK TABLE public.relay_lanes IN SHARE ROW EXCLUSIVE MODE;
    IF (SELECT max(l.position) FROM public.relay_lanes l) > (SELECT s.last_value FROM public.outbox_id_seq s) THEN
        RAISE EXCEPTION 'relay_reanchor: the sequence outbox_id_seq is behind the relays: new rows would get ids that were given out before'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Stop all writers and run: SELECT setval(''outbox_id_seq'', (SELECT greatest(max(o.id), max(l.position)) FROM outbox o, relay_lanes l))';
    END IF;
    SELECT coalesce(min(pg_snapshot_xmax(l.seen)::text::bigint), 0) INTO late_from FROM public.relay_lanes l;
    SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
        FROM public.relay_lanes l CROSS JOIN LATERAL pg_snapshot_xip(l.seen) x (txid);
    UPDATE public.outbox o
        SET txid = CASE
            WHEN o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen) THEN own
            ELSE 0
        END
        FROM public.relay_lanes l
        WHERE l.lane = o.lane AND (o.txid = own OR o.txid >= late_from OR o.txid = ANY (late_running))
            AND (o.txid = own OR (o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)));
    -- Rows that are late for a type that waits: the lane has passed over them, and passes over them again while the type waits.
    UPDATE public.outbox o SET txid = own
        FROM public.relay_waiting w
        WHERE w.lane = o.lane AND w.aggregate_type = o.aggregate_type AND o.id <= w.position
            AND NOT pg_visible_in_snapshot(o.txid::text::xid8, w.seen) AND o.txid <> own
            AND (o.txid >= (SELECT min(pg_snapshot_xmax(m.seen)::text::bigint) FROM public.relay_waiting m)
                OR o.txid = ANY (ARRAY(SELECT x.txid::text::bigint FROM public.relay_waiting m CROSS JOIN LATERAL pg_snapshot_xip(m.seen) x (txid))));
    UPDATE public.relay_waiting SET seen = CASE WHEN position > 0 THEN format('%s:%s:', own, own)::pg_snapshot END;
    UPDATE public.relay_lanes
        SET seen = CASE WHEN position > 0 THEN format('%s:%s:', own, own)::pg_snapshot END,
            system_identifier = 0, owner = NULL, expires_at = '-infinity', token = token + 1;
    INSERT INTO public.relay_reanchoring (system_identifier, late_txid, from_txid)
        SELECT s.system_identifier, own, pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM pg_control_system() s;
END $$;

CREATE OR REPLACE FUNCTION relay_reanchor_change(piece_rows integer)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    younger record;
    put_back text[] := '{}';
    changed_rows bigint := 0;
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM public.relay_reanchoring) THEN
            RETURN public.relay_reanchor_piece(piece_rows);
        END IF;
        PERFORM public.relay_reanchor_begin();
        RETURN 0;
    EXCEPTION
        WHEN check_violation THEN NULL;
    END;
    FOR younger IN
        SELECT c.conname, pg_get_constraintdef(c.oid) AS definition FROM pg_constraint c
        WHERE c.conrelid = 'public.outbox'::regclass AND c.contype = 'c' AND NOT c.convalidated
    LOOP
        EXECUTE format('ALTER TABLE public.outbox DROP CONSTRAINT %I', younger.conname);
        put_back := put_back || format('ALTER TABLE public.outbox ADD CONSTRAINT %I %s', younger.conname, younger.definition);
    END LOOP;
    IF EXISTS (SELECT FROM public.relay_reanchoring) THEN
        changed_rows := public.relay_reanchor_piece(piece_rows);
    ELSE
        PERFORM public.relay_reanchor_begin();
    END IF;
    FOR i IN 1 .. cardinality(put_back) LOOP
        EXECUTE put_back[i];
    END LOOP;
    RETURN changed_rows;
END $$;

CREATE OR REPLACE FUNCTION relay_reanchor_piece(piece_rows integer)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    run public.relay_reanchoring;
    changed_rows bigint;
    lowest record;
BEGIN
    SELECT * INTO STRICT run FROM public.relay_reanchoring;
    WITH piece AS MATERIALIZED (
        SELECT o.lane, o.id, o.txid FROM public.outbox o
        WHERE o.txid >= run.from_txid AND o.txid <> run.late_txid AND (o.txid, o.id) < (run.below_txid, run.below_id)
        ORDER BY o.txid DESC, o.id DESC
        LIMIT piece_rows
    ), changed AS (
        UPDATE public.outbox o SET txid = 0 FROM piece WHERE o.lane = piece.lane AND o.id = piece.id
    )
    SELECT piece.txid, piece.id, count(*) OVER () AS piece_rows INTO lowest FROM piece ORDER BY piece.txid, piece.id LIMIT 1;
    changed_rows := coalesce(lowest.piece_rows, 0);
    IF changed_rows > 0 THEN
        UPDATE public.relay_reanchoring
            SET below_txid = lowest.txid, below_id = lowest.id, rows_changed = rows_changed + changed_rows;
    END IF;
    RETURN changed_rows;
END $$;

CREATE OR REPLACE FUNCTION relay_reanchor_step(piece_rows integer)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    here CONSTANT bigint := (SELECT s.system_identifier FROM pg_control_system() s);
    run public.relay_reanchoring;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'relay_reanchor must be called in READ COMMITTED';
    END IF;
    -- Of two callers, one steps after the other. Relays may look.
    LOCK TABLE public.relay_reanchoring IN EXCLUSIVE MODE;
    SELECT * INTO run FROM public.relay_reanchoring;
    IF NOT FOUND THEN
        IF NOT EXISTS (SELECT FROM public.outbox_foreign_row()) THEN
            RAISE NOTICE 'relay_reanchor: nothing to do: all transaction ids in the outbox are of this cluster''s past';
            RETURN true;
        END IF;
        PERFORM public.relay_reanchor_change(piece_rows);
        RETURN false;
    END IF;
    IF public.relay_reanchor_change(piece_rows) > 0 THEN
        RETURN false;
    END IF;
    DELETE FROM public.relay_reanchoring;
    -- Begun in another cluster, dumped there and restored here: what was begun is complete now, and has to be done for this cluster too.
    IF run.system_identifier <> here AND EXISTS (SELECT FROM public.outbox_foreign_row()) THEN
        PERFORM public.relay_reanchor_change(piece_rows);
        RETURN false;
    END IF;
    UPDATE public.relay_lanes
        SET system_identifier = here, owner = NULL, expires_at = '-infinity', token = token + 1;
    RAISE NOTICE 'relay_reanchor: done, % rows changed since %', run.rows_changed, run.started_at;
    RETURN true;
END $$;
