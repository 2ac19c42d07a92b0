-- Retention: outbox partitions are dropped whole, once nobody needs a row of them any more.
SET LOCAL lock_timeout = '5s';

-- Bounds are only kept as text; a partition whose bounds are no numbers, or that is just being detached, is not ours to judge.
CREATE VIEW outbox_partitions AS
SELECT p.oid, p.name, p.bounds[1]::bigint AS first_id, p.bounds[2]::bigint AS past_id
FROM (
    SELECT c.oid, c.relname AS name,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(\d+)''\) TO \(''(\d+)''\)') AS bounds
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'outbox'::regclass AND NOT i.inhdetachpending
) p
WHERE p.bounds IS NOT NULL;
COMMENT ON VIEW outbox_partitions IS 'The partitions of the outbox, with the ids that each is for.';
COMMENT ON COLUMN outbox_partitions.oid IS 'pg_class.oid.';
COMMENT ON COLUMN outbox_partitions.name IS 'pg_class.relname.';
COMMENT ON COLUMN outbox_partitions.first_id IS 'Lowest id that belongs into it.';
COMMENT ON COLUMN outbox_partitions.past_id IS 'Lowest id above it that does not.';

-- Why a partition of the outbox must stay; null when it may go.
--
-- A row is done with when the *settled* cursor of its lane covers it: no relay ever starts from further back, and what a running
-- relay has read ahead of that, or has in flight, is above it. Asked is for rows that are not covered, and not whether each position
-- is past the last id: a lane to which no event comes would otherwise keep every partition for ever.
--
-- VOLATILE, so that every statement in it takes a snapshot of its own: the rows of a writer that has just released its locks must be
-- seen. Each looks at the partition itself, by name, so that only the index that is meant fits it: (lane, id) for a few short
-- ranges a lane, and (txid) from the oldest transaction on that a lane's snapshot did not see. By way of outbox and a range of ids, the
-- planner goes over all of (lane, id) for the latter: 4 s for three million rows. Without sorting, since where the statistics are old
-- it would rather collect a whole lane and sort it than read one row in the order of the index.
CREATE FUNCTION outbox_keep_reason(partition regclass, retention interval) RETURNS text
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
    EXECUTE format('SELECT EXISTS (
        SELECT FROM relay_lanes l CROSS JOIN LATERAL (
            SELECT o.occurred_at FROM ONLY %s o WHERE o.lane = l.lane ORDER BY o.id DESC LIMIT 1
        ) newest
        WHERE newest.occurred_at > now() - $1
    )', partition) INTO found_one USING retention;
    IF found_one THEN
        RETURN 'recent';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION outbox_keep_reason IS 'Why a partition of the outbox may not be dropped: foreign (cursors of another cluster), unpublished, late (committed late and not yet published), recent (within the retention); null if it may.';
REVOKE EXECUTE ON FUNCTION outbox_keep_reason FROM PUBLIC;

-- Which transactions of others have, or wait for, a lock on outbox or on this partition of it; `holder` is never used again by another one.
CREATE FUNCTION outbox_lock_holders(partition regclass) RETURNS TABLE (holder text, pid integer)
LANGUAGE sql VOLATILE
SET search_path = public, pg_temp
AS $$
    SELECT DISTINCT l.virtualtransaction, l.pid
    FROM pg_locks l
    JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'relation' AND l.relation IN ('outbox'::regclass, partition)
        AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;
COMMENT ON FUNCTION outbox_lock_holders IS 'Transactions of others with a lock on outbox or on the given partition: virtual transaction, and pid (null for a prepared one).';
REVOKE EXECUTE ON FUNCTION outbox_lock_holders FROM PUBLIC;

-- Drops the oldest partition of the outbox, if nobody needs it any more. Returns what came of it, in one row, or none when there is
-- no partition that the sequence has left behind, or another caller is at it:
--
--   dropped                              it is gone
--   foreign, unpublished, late, recent   it must stay: see outbox_keep_reason
--   held                                 it could go, but a transaction (of `pid`; null for a prepared one) has had a lock on the outbox
--                                        for a while, and waiting for it would make all writers wait behind us
--   busy                                 it could go, but a lock could not be had within lock_timeout
--
-- One partition a call, since the locks are held until the caller's transaction ends.
--
-- To be dropped, a partition must have no row that is still to be published, and it must stay so. Two locks see to that:
--
-- 1. SHARE on the partition. It conflicts with the ROW EXCLUSIVE of every transaction that has written a row into it and is still
--    open, so once we have it, all rows there will be are committed, and the statements after it see them. It stops no one else:
--    readers may read, and writers write elsewhere.
-- 2. ACCESS EXCLUSIVE on outbox. A writer may have drawn its id from the sequence and not yet have locked the partition that the
--    id belongs to; but outbox itself it locks before that, and until it commits. So when we have this lock there is no such writer.
--    If there was one, it waits for lock 1 while we wait for it: lock_timeout ends that, we try again later, and nothing is lost.
--
-- While we wait for lock 2, every writer that comes waits behind us. lock_timeout is therefore the longest that a writer can be held
-- up. It is per lock, so the third one, ACCESS EXCLUSIVE on the partition against whoever reads it directly, is not waited for.
-- Dropping itself takes milliseconds: files are removed after the locks are released. And a transaction that stays open, which would
-- let every try end in a time-out, is looked for before: who has a lock on the outbox at two looks 0.3 s apart is not waited for at all.
--
-- DETACH ... CONCURRENTLY would need no such lock, but it cannot run inside a function, and it is only for the owner of outbox; the
-- relay is not the owner, which is also why this is SECURITY DEFINER.
CREATE FUNCTION outbox_drop_partitions(retention interval)
RETURNS TABLE (name text, outcome text, pid integer)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET lock_timeout = '150ms'
AS $$
DECLARE
    target record;
    last_id bigint;
    before text[];
BEGIN
    -- In the other levels all statements see the snapshot of the first one, and with it not what was committed before our locks.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'outbox_drop_partitions must be called in READ COMMITTED';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox_drop_partitions')) THEN
        RETURN;
    END IF;
    -- The next id is at most one above the last one, so a partition that ends below the last one gets no more ids.
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO last_id FROM outbox_id_seq s;
    SELECT p.oid::regclass AS relation, p.name INTO target
        FROM outbox_partitions p WHERE p.past_id <= last_id ORDER BY p.past_id LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    name := target.name;
    -- First without any lock, so that a partition that has to stay is left alone.
    outcome := outbox_keep_reason(target.relation, retention);
    IF outcome IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(h.holder) INTO before FROM outbox_lock_holders(target.relation) h;
    IF before IS NOT NULL THEN
        PERFORM pg_sleep(0.3);
        SELECT 'held', h.pid INTO outcome, pid FROM outbox_lock_holders(target.relation) h
            WHERE h.holder = ANY (before) ORDER BY h.pid LIMIT 1;
        IF FOUND THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    BEGIN
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', target.relation);
        outcome := outbox_keep_reason(target.relation, retention);
        IF outcome IS NULL THEN
            LOCK TABLE ONLY outbox IN ACCESS EXCLUSIVE MODE;
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
COMMENT ON FUNCTION outbox_drop_partitions IS 'Drops the oldest outbox partition if all of it is published and older than the retention; says what came of it.';
REVOKE EXECUTE ON FUNCTION outbox_drop_partitions FROM PUBLIC;

GRANT SELECT ON outbox_partitions TO outrider_relay;
GRANT EXECUTE ON FUNCTION outbox_drop_partitions TO outrider_relay;
