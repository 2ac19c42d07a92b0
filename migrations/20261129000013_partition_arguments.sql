-- Partition and retention functions refuse arguments that nobody means, with SQLSTATE 22023. The functions are otherwise as before.
SET LOCAL lock_timeout = '5s';

-- A thousand partitions ahead, by a slip of the finger, would each be planned for by every statement on the outbox.
CREATE OR REPLACE FUNCTION outbox_make_partitions(ahead integer) RETURNS integer
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
    IF ahead IS NULL OR ahead NOT BETWEEN 1 AND 10 THEN
        RAISE EXCEPTION 'outbox_make_partitions: ahead must be from 1 to 10, and not %', coalesce(ahead::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
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

-- Without a retention, or with a negative one, every partition would go as soon as it is published.
CREATE OR REPLACE FUNCTION outbox_drop_partitions(retention interval)
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

CREATE OR REPLACE FUNCTION idempotency_make_partition(days_ahead integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET lock_timeout = '1s'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    today CONSTANT date := idempotency_day(now());
    wanted date;
    name text;
BEGIN
    IF days_ahead IS NULL OR days_ahead NOT BETWEEN 0 AND 30 THEN
        RAISE EXCEPTION 'idempotency_make_partition: days_ahead must be from 0 to 30, and not %', coalesce(days_ahead::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('idempotency_partitions'));
    SELECT today + d.ahead INTO wanted FROM generate_series(0, days_ahead) d (ahead)
        WHERE NOT EXISTS (SELECT FROM idempotency_partitions p WHERE p.day = today + d.ahead)
        ORDER BY d.ahead LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    name := 'idempotency_keys_p' || to_char(wanted, 'YYYYMMDD');
    EXECUTE format('CREATE TABLE %I (LIKE idempotency_keys INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE idempotency_keys ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, wanted, wanted + 1);
    RETURN name;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN RETURN NULL; -- Next time.
END $$;

-- Without a bound all rows would go in one statement.
CREATE OR REPLACE FUNCTION inbox_clean(rows_max integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    cutoff CONSTANT timestamptz := inbox_cutoff();
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
    DELETE FROM ONLY inbox_undated WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM ONLY inbox_undated i WHERE i.received_at < cutoff ORDER BY i.received_at LIMIT rows_max
        FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    sum := sum + deleted;
    DELETE FROM ONLY inbox_default WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM ONLY inbox_default i WHERE i.received_at < cutoff ORDER BY i.received_at LIMIT rows_max
        FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN sum + deleted;
END $$;

-- The retention of the inbox comes by this table. A negative one would make inbox_cutoff() a time in the future, and all that a group knows
-- of repeats would be deleted.
ALTER TABLE inbox_groups
    ADD CONSTRAINT inbox_groups_retention_check CHECK (extract(epoch FROM retention) BETWEEN 0 AND 36525 * 86400.0) NOT VALID;
