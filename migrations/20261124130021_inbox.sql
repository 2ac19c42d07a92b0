-- The inbox is partitioned by the day on which its events occurred, and whole days are dropped.
--
-- A repeat of an event must meet the row of its first time, so the day is part of the key and the same for every repeat: that of the
-- time in its id (UUID v7); for other ids, that of its header ce_time; without either, 0001-01-01. It never depends on when or
-- where the event was received.
SET LOCAL lock_timeout = '5s';

ALTER TABLE inbox RENAME TO inbox_before;
ALTER TABLE inbox_before RENAME CONSTRAINT inbox_pkey TO inbox_before_pkey;

CREATE TABLE inbox (
    group_id    text        NOT NULL,
    event_id    uuid        NOT NULL,
    occurred_on date        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT inbox_pkey PRIMARY KEY (group_id, event_id, occurred_on)
) PARTITION BY RANGE (occurred_on);
-- Rows come in the order of this column, so a few pages of it tell whether anything in a partition is recent.
CREATE INDEX inbox_received_idx ON inbox USING brin (received_at) WITH (autosummarize = on);
COMMENT ON TABLE inbox IS 'Events a group has taken in: an event that is published again, at another offset, is recognised by it.';
COMMENT ON COLUMN inbox.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN inbox.event_id IS 'Header "id" of the record.';
COMMENT ON COLUMN inbox.occurred_on IS 'Day (UTC) of the time in the id, else of the header "ce_time", else 0001-01-01: the same for every repeat.';
COMMENT ON COLUMN inbox.received_at IS 'When it was last taken in or met again, give or take an hour: its records may stay in Kafka for so long after it.';

-- Where no partition is made for a day, rows are deleted by age; these two find the old ones by an index of their own.
CREATE TABLE inbox_undated PARTITION OF inbox FOR VALUES FROM (MINVALUE) TO ('1970-01-01');
CREATE INDEX inbox_undated_received_idx ON inbox_undated (received_at);
COMMENT ON TABLE inbox_undated IS 'Events that do not tell when they occurred.';
CREATE TABLE inbox_default PARTITION OF inbox DEFAULT;
CREATE INDEX inbox_default_received_idx ON inbox_default (received_at);
CREATE INDEX inbox_default_day_idx ON inbox_default (occurred_on);
COMMENT ON TABLE inbox_default IS 'Events of days that have no partition: long past, or yet to come.';

-- An id that holds no time has left no trace of ce_time but in the outbox, as long as its row is there.
INSERT INTO inbox (group_id, event_id, occurred_on, received_at)
SELECT b.group_id, b.event_id,
    coalesce(
        CASE WHEN substr(b.event_id::text, 15, 1) = '7' THEN
            (timestamp '1970-01-01' + make_interval(secs =>
                ('x' || translate(substr(b.event_id::text, 1, 13), '-', ''))::bit(48)::bigint / 1000.0))::date
        END,
        (o.occurred_at AT TIME ZONE 'UTC')::date,
        date '0001-01-01'),
    b.received_at
FROM inbox_before b
LEFT JOIN (SELECT event_id, min(occurred_at) AS occurred_at FROM outbox
    WHERE substr(event_id::text, 15, 1) <> '7' GROUP BY event_id) o ON o.event_id = b.event_id;
DROP TABLE inbox_before;

CREATE TABLE inbox_groups (
    group_id  text        NOT NULL CONSTRAINT inbox_groups_pkey PRIMARY KEY,
    retention interval,
    seen_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE inbox_groups IS 'For how long each group wants to know repeats. A partition has rows of all groups, so the longest counts.';
COMMENT ON COLUMN inbox_groups.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN inbox_groups.retention IS 'PROCESSOR_INBOX_RETENTION; null: for ever.';
COMMENT ON COLUMN inbox_groups.seen_at IS 'When a processor of the group last said so.';

-- A row younger than this may be needed. Null: every row. An hour on top, since received_at may be so far behind; a group that has been
-- away for longer than its retention, and a day, has nothing left in Kafka that could come again.
CREATE FUNCTION inbox_cutoff() RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT CASE WHEN bool_and(retention IS NOT NULL) THEN now() - max(retention) - interval '1 hour' END
    FROM inbox_groups
    WHERE retention IS NULL OR seen_at > now() - retention - interval '1 day'
$$;
COMMENT ON FUNCTION inbox_cutoff IS 'Inbox rows received before this are needed by no group; null if all are needed.';
REVOKE EXECUTE ON FUNCTION inbox_cutoff FROM PUBLIC;

CREATE VIEW inbox_partitions AS
SELECT p.oid, p.name, p.bounds[1]::date AS occurred_on
FROM (
    SELECT c.oid, c.relname AS name,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(\d+-\d+-\d+)''\)') AS bounds
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'inbox'::regclass AND NOT i.inhdetachpending
) p
WHERE p.bounds IS NOT NULL;
COMMENT ON VIEW inbox_partitions IS 'The partitions of the inbox that are for one day.';
COMMENT ON COLUMN inbox_partitions.oid IS 'pg_class.oid.';
COMMENT ON COLUMN inbox_partitions.name IS 'pg_class.relname.';
COMMENT ON COLUMN inbox_partitions.occurred_on IS 'The day.';

-- Makes one of the partitions that are missing: of the days within the retention, 60 at most, and of the next two. Returns its name, or
-- null if none is missing or could be made now. One a call, since the locks are held until the caller's transaction ends.
--
-- Rows of such a day may be in inbox_default: they came before it. They are moved, in the same transaction, so that a repeat finds them
-- at any time in the one place or the other. The lock on inbox_default keeps others from adding more; ATTACH takes it anyway. It is had
-- only when nobody has written there in a transaction that is open, and waits no longer than lock_timeout: writers of days
-- without a partition may wait for so long, and for the moving. More than 50,000 rows are not moved but left to be
-- deleted by age. ATTACH takes SHARE UPDATE EXCLUSIVE on inbox, which stops nobody. A writer that was already on its way into
-- inbox_default with a row of that day is refused by Postgres (23514), and its batch is tried again.
CREATE FUNCTION inbox_make_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET lock_timeout = '150ms'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    today CONSTANT date := (now() AT TIME ZONE 'UTC')::date;
    -- While no group has said for how long, as for the default of seven days.
    first_day CONSTANT date :=
        greatest(coalesce((inbox_cutoff() AT TIME ZONE 'UTC')::date - 1, today - 8), today - 60);
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
        WHERE NOT EXISTS (SELECT FROM inbox_partitions p WHERE p.occurred_on = d.day::date)
        ORDER BY d.day DESC
    LOOP
        name := 'inbox_p' || to_char(wanted, 'YYYYMMDD');
        BEGIN
            LOCK TABLE ONLY inbox_default IN ACCESS EXCLUSIVE MODE;
            SELECT count(*) INTO crowd
                FROM (SELECT FROM ONLY inbox_default d WHERE d.occurred_on = wanted LIMIT 50001) crowded;
            CONTINUE WHEN crowd > 50000;
            EXECUTE format('CREATE TABLE %I (LIKE inbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
            IF crowd > 0 THEN
                EXECUTE format('WITH moved AS (DELETE FROM ONLY inbox_default d WHERE d.occurred_on = $1 RETURNING d.*)
                    INSERT INTO %I SELECT * FROM moved ORDER BY received_at', name) USING wanted;
            END IF;
            EXECUTE format('ALTER TABLE inbox ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, wanted, wanted + 1);
            RETURN name;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected THEN RETURN NULL; -- Next time.
        END;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION inbox_make_partition IS 'Makes a missing inbox partition of a day within the retention or of the next two; returns its name, or null.';
REVOKE EXECUTE ON FUNCTION inbox_make_partition FROM PUBLIC;

-- Whether any row of a partition may still be needed. VOLATILE, so that it sees what was committed before the caller's locks.
CREATE FUNCTION inbox_is_needed(partition regclass, cutoff timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = public, pg_temp
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
COMMENT ON FUNCTION inbox_is_needed IS 'Whether a partition of the inbox has rows received since the cutoff.';
REVOKE EXECUTE ON FUNCTION inbox_is_needed FROM PUBLIC;

-- Does away with one day of which nothing was received within the retention. Returns what came of it, in one row, or none when there is no
-- such day:
--
--   dropped   its partition is gone
--   emptied   its rows are gone; its partition goes at the next call
--   busy      a lock could not be had within lock_timeout
--
-- In two steps, because they need different locks. To empty a partition takes a lock on that one alone, where nobody works any more, so
-- the space is had back even where transactions follow each other without a pause. To drop it takes ACCESS EXCLUSIVE on inbox:
-- it waits for every batch under way, and every batch that comes waits behind it, but no longer than lock_timeout. Both judge again
-- under their lock: an event of that day may have come in between. One whose transaction is open has a lock on the partition, so it
-- is waited for and then seen; one that comes while we have the lock waits for us, and then finds no row and no partition, as it
-- would after the retention.
CREATE FUNCTION inbox_drop_partition() RETURNS TABLE (name text, outcome text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET lock_timeout = '150ms'
SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    cutoff CONSTANT timestamptz := inbox_cutoff();
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
    SELECT p.oid::regclass AS relation, p.name INTO target FROM inbox_partitions p
        WHERE p.occurred_on < (cutoff AT TIME ZONE 'UTC')::date - 1 AND NOT inbox_is_needed(p.oid, cutoff)
        ORDER BY p.occurred_on LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    name := target.name;
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM ONLY %s)', target.relation) INTO is_empty;
    BEGIN
        IF is_empty THEN
            LOCK TABLE ONLY inbox IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', target.relation);
            IF inbox_is_needed(target.relation, cutoff) THEN
                RETURN;
            END IF;
            EXECUTE format('DROP TABLE %s', target.relation);
            outcome := 'dropped';
        ELSE
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', target.relation);
            IF inbox_is_needed(target.relation, cutoff) THEN
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
COMMENT ON FUNCTION inbox_drop_partition IS 'Empties, then drops, an inbox partition of which nothing was received within the retention; says what came of it.';
REVOKE EXECUTE ON FUNCTION inbox_drop_partition FROM PUBLIC;

-- Deletes old rows where no day is dropped, `rows_max` at most of each of the two partitions. Returns how many. A row that somebody is
-- about to renew is left alone.
CREATE FUNCTION inbox_clean(rows_max integer) RETURNS bigint
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
COMMENT ON FUNCTION inbox_clean IS 'Deletes old rows of inbox_undated and inbox_default; returns how many.';
REVOKE EXECUTE ON FUNCTION inbox_clean FROM PUBLIC;

SELECT inbox_make_partition() FROM generate_series(1, 11);

GRANT SELECT, INSERT, DELETE ON inbox TO outrider_processor;
GRANT UPDATE (received_at) ON inbox TO outrider_processor;
GRANT SELECT ON inbox_partitions TO outrider_processor;
GRANT SELECT, INSERT, UPDATE ON inbox_groups TO outrider_processor;
GRANT EXECUTE ON FUNCTION inbox_make_partition, inbox_drop_partition, inbox_clean TO outrider_processor;
