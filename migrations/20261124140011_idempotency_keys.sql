-- Idempotency keys: which order a caller's key has made, with the answer to it. Partitioned by day, and whole days are dropped.
--
-- A unique constraint of a partitioned table holds within a partition only, so two requests around midnight could both find a key
-- unused. Therefore a key takes its place in every day from the one it is first used on until the one its retention ends in, and
-- a request asks for its own day only: whoever comes within the retention meets a row in the unique index of that day, or the
-- transaction that is about to write it, and waits for that. Nothing depends on what a snapshot shows or on how long a transaction takes.
SET LOCAL lock_timeout = '5s';

-- Of one place, so that all who ask agree on it; it is inlined and costs nothing.
CREATE FUNCTION idempotency_day(at timestamptz) RETURNS date
LANGUAGE sql IMMUTABLE
AS $$ SELECT (at AT TIME ZONE 'UTC')::date $$;
COMMENT ON FUNCTION idempotency_day IS 'The day (UTC) whose partition of idempotency_keys is asked at that time.';

CREATE TABLE idempotency_keys (
    order_id    bigint NOT NULL,
    fingerprint bigint NOT NULL,
    key         uuid   NOT NULL,
    day         date   NOT NULL,
    document    text   NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key, day)
) PARTITION BY RANGE (day);
COMMENT ON TABLE idempotency_keys IS 'Append-only: what each key of a caller was answered with, once for each day on which it is known.';
COMMENT ON COLUMN idempotency_keys.order_id IS 'The order that the key has made.';
COMMENT ON COLUMN idempotency_keys.fingerprint IS 'First 64 bits of the SHA-256 of what was ordered: the same key with another one is refused.';
COMMENT ON COLUMN idempotency_keys.key IS 'First 128 bits of the SHA-256 of the caller and its key.';
COMMENT ON COLUMN idempotency_keys.day IS 'A day (UTC) on which the key is known.';
COMMENT ON COLUMN idempotency_keys.document IS 'The order''s JSON when it was accepted: the body of the first answer.';

CREATE VIEW idempotency_partitions AS
SELECT p.oid, p.name, p.bounds[1]::date AS day
FROM (
    SELECT c.oid, c.relname AS name,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(\d+-\d+-\d+)''\)') AS bounds
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'idempotency_keys'::regclass AND NOT i.inhdetachpending
) p
WHERE p.bounds IS NOT NULL;
COMMENT ON VIEW idempotency_partitions IS 'The partitions of idempotency_keys.';
COMMENT ON COLUMN idempotency_partitions.oid IS 'pg_class.oid.';
COMMENT ON COLUMN idempotency_partitions.name IS 'pg_class.relname.';
COMMENT ON COLUMN idempotency_partitions.day IS 'The day it is for.';

-- Makes the first partition that is missing of today and the days ahead, 30 at most. Returns its name, or null if none is missing or could
-- be made now. One a call, since the locks are held until the caller's transaction ends. ATTACH takes SHARE UPDATE EXCLUSIVE on
-- idempotency_keys, which stops no writer. Who comes second waits for the first one, and then sees what that has made.
CREATE FUNCTION idempotency_make_partition(days_ahead integer) RETURNS text
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
    PERFORM pg_advisory_xact_lock(hashtext('idempotency_partitions'));
    SELECT today + d.ahead INTO wanted FROM generate_series(0, least(days_ahead, 30)) d (ahead)
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
COMMENT ON FUNCTION idempotency_make_partition IS 'Makes a missing partition of idempotency_keys, of today or the days ahead; returns its name, or null.';
REVOKE EXECUTE ON FUNCTION idempotency_make_partition FROM PUBLIC;

-- Does away with one day that is over: requests ask for their own day only, so it is needed by nobody. Yesterday stays, for those that began
-- before midnight; one that began earlier still finds no partition and is refused (23514). Returns what came of it, in one row, or
-- none when there is no such day:
--
--   dropped   its partition is gone
--   emptied   its rows are gone; its partition goes at the next call
--   busy      a lock could not be had within lock_timeout
--
-- In two steps, because they need different locks. To empty a partition takes a lock on that one alone, where nobody works any more, so
-- the space is had back even under load. To drop it takes ACCESS EXCLUSIVE on idempotency_keys: it waits for the statements under way that
-- have keys, and those that come wait behind it, but no longer than lock_timeout.
CREATE FUNCTION idempotency_drop_partition() RETURNS TABLE (name text, outcome text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
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
    SELECT p.oid::regclass AS relation, p.name INTO target FROM idempotency_partitions p
        WHERE p.day < idempotency_day(now()) - 1 ORDER BY p.day LIMIT 1;
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
COMMENT ON FUNCTION idempotency_drop_partition IS 'Empties, then drops, a partition of idempotency_keys whose day is over; says what came of it.';
REVOKE EXECUTE ON FUNCTION idempotency_drop_partition FROM PUBLIC;

SELECT idempotency_make_partition(3) FROM generate_series(1, 4);

GRANT SELECT, INSERT ON idempotency_keys TO outrider_api;
GRANT SELECT ON idempotency_partitions TO outrider_api;
GRANT EXECUTE ON FUNCTION idempotency_make_partition, idempotency_drop_partition TO outrider_api;
