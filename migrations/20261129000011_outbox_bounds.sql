-- What the outbox takes is bounded, so that each row of it can be read, published, or set aside when Kafka refuses it.
SET LOCAL lock_timeout = '5s';

-- One CHECK that calls a function, and not a CHECK for each bound: Postgres parses the text of every CHECK for every statement. Six more of
-- them added 16 microseconds of CPU to a statement of 20. This adds one, with 2.6 more for the first row of a transaction and half a
-- microsecond for each one after it. The first IF is all that a usual row meets.
--
-- The function has no search_path of its own, since setting one costs more than all of the rest. It uses what is in pg_catalog only.
CREATE FUNCTION outbox_takes(
    aggregate_type text, aggregate_id text, aggregate_version bigint, type text, payload_bytes integer, headers jsonb,
    occurred_at timestamptz
) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    -- The limit of headers is on their text, and to make that of every row would double the cost. 256 bytes of jsonb come to 1.5 kB of text
    -- where every character has to be escaped. Two things escape: numbers with huge exponents, of which 20 fit with 147 kB of text
    -- each, and compressed values from another table, which come to 64 kB. A relay can read those.
    IF octet_length(aggregate_type) BETWEEN 1 AND 200 AND octet_length(aggregate_id) BETWEEN 1 AND 1000 AND aggregate_version >= 1
        AND octet_length(type) BETWEEN 1 AND 250 AND payload_bytes <= 16777216
        AND jsonb_typeof(headers) = 'object' AND pg_column_size(headers) <= 256
        AND occurred_at >= timestamptz '0001-01-01 00:00:00+00' AND occurred_at < timestamptz '10000-01-01 00:00:00+00'
    THEN
        RETURN true;
    END IF;
    DECLARE
        headers_bytes CONSTANT integer := octet_length(headers::text);
        -- Name of the bound, column, and what is wrong.
        violated CONSTANT text[] := CASE
            WHEN octet_length(aggregate_type) NOT BETWEEN 1 AND 200 THEN ARRAY['outbox_aggregate_type_bytes', 'aggregate_type',
                format('must have 1 to 200 bytes, and not %s', octet_length(aggregate_type))]
            WHEN octet_length(aggregate_id) NOT BETWEEN 1 AND 1000 THEN ARRAY['outbox_aggregate_id_bytes', 'aggregate_id',
                format('must have 1 to 1000 bytes, and not %s', octet_length(aggregate_id))]
            WHEN aggregate_version < 1 THEN ARRAY['outbox_aggregate_version_check', 'aggregate_version',
                format('must be 1 or more, and not %s', aggregate_version)]
            WHEN octet_length(type) NOT BETWEEN 1 AND 250 THEN ARRAY['outbox_type_bytes', 'type',
                format('must have 1 to 250 bytes, and not %s', octet_length(type))]
            WHEN payload_bytes > 16777216 THEN ARRAY['outbox_payload_bytes', 'payload',
                format('must have 16777216 bytes at most, and not %s', payload_bytes)]
            WHEN jsonb_typeof(headers) <> 'object' THEN ARRAY['outbox_headers_check', 'headers',
                format('must be a JSON object, and not of type %s', jsonb_typeof(headers))]
            WHEN headers_bytes > 32768 THEN ARRAY['outbox_headers_bytes', 'headers',
                format('must have 32768 bytes of text at most, and not %s', headers_bytes)]
            WHEN occurred_at < timestamptz '0001-01-01 00:00:00+00' OR occurred_at >= timestamptz '10000-01-01 00:00:00+00' THEN
                ARRAY['outbox_occurred_at_years', 'occurred_at', format('must be in the years 1 to 9999, and not %s', occurred_at)]
        END;
    BEGIN
        IF violated IS NULL THEN
            RETURN true;
        END IF;
        -- A CHECK is asked about every row that is updated as well. The owner may say that rows which are there already stay as they are: the
        -- owner who is logged in, and not a writer within a function that runs as the owner.
        IF current_setting('outrider.odd_rows', true) = 'keep' AND (
            SELECT pg_has_role(c.relowner, 'USAGE') AND pg_has_role(session_user, c.relowner, 'USAGE')
            FROM pg_class c WHERE c.oid = 'public.outbox'::regclass)
        THEN
            RETURN true;
        END IF;
        RAISE EXCEPTION 'outbox: % %', violated[2], violated[3]
            USING ERRCODE = 'check_violation', SCHEMA = 'public', TABLE = 'outbox', COLUMN = violated[2], CONSTRAINT = violated[1];
    END;
END $$;
COMMENT ON FUNCTION outbox_takes IS 'Whether a row is within the bounds of the outbox. If not, it fails with SQLSTATE 23514, the column and the name of the bound. `SET outrider.odd_rows = keep` lets the owner of the outbox, and nobody else, update rows that are out of bounds.';
-- Every writer calls it, whatever default privileges an administrator has set.
GRANT EXECUTE ON FUNCTION outbox_takes TO PUBLIC;

-- NOT VALID: the upgrade neither reads nor refuses rows that are there already. A later partition has the same CHECK, since it is made LIKE
-- outbox.
ALTER TABLE outbox
    DROP CONSTRAINT outbox_aggregate_version_check,
    DROP CONSTRAINT outbox_headers_check,
    ADD CONSTRAINT outbox_bounds
        CHECK (outbox_takes(aggregate_type, aggregate_id, aggregate_version, type, payload_bytes, headers, occurred_at)) NOT VALID;

-- Its primary key is an index on this text, which takes no more than 2,700 bytes.
ALTER TABLE relay_routes
    ADD CONSTRAINT relay_routes_aggregate_type_bytes CHECK (octet_length(aggregate_type) BETWEEN 1 AND 200) NOT VALID;
