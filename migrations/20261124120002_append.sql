-- outbox_append: an event from a single call, for writers that keep no versions of their own.
SET LOCAL lock_timeout = '5s';

CREATE TABLE outbox_versions (
    aggregate_type text   NOT NULL,
    aggregate_id   text   NOT NULL,
    version        bigint NOT NULL CONSTRAINT outbox_versions_version_check CHECK (version >= 1),
    CONSTRAINT outbox_versions_pkey PRIMARY KEY (aggregate_type, aggregate_id)
) WITH (fillfactor = 70); -- Every event of an aggregate updates its row: room for that on the row's own page keeps the update HOT.

COMMENT ON TABLE outbox_versions IS 'The last version of each aggregate whose events are written by outbox_append(). Its row lock, held until the transaction ends, lets one writer of an aggregate go after the other. Writers that insert into outbox themselves (the api does for "order") do not use it, so an aggregate must be versioned by one side.';
COMMENT ON COLUMN outbox_versions.aggregate_type IS 'outbox.aggregate_type.';
COMMENT ON COLUMN outbox_versions.aggregate_id IS 'outbox.aggregate_id.';
COMMENT ON COLUMN outbox_versions.version IS 'Version of the last event: the next one gets one more.';

-- 48 bits of milliseconds, the version 7, and the random rest of a UUID v4 with its variant (RFC 9562, 5.7). In hexadecimal
-- digits: 12 of time, one of version, 19 of the random one.
CREATE FUNCTION outbox_uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
        || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;
COMMENT ON FUNCTION outbox_uuid_v7 IS 'A new UUID v7: ordered by its time in milliseconds, random beyond that.';

-- So that a plain INSERT need not name one.
ALTER TABLE outbox ALTER COLUMN event_id SET DEFAULT outbox_uuid_v7();

-- Why the ids of one aggregate are in the order of its commits, whatever the caller does before: the first statement takes the
-- lock on the aggregate's row in outbox_versions and holds it until the end of the transaction (or of the savepoint, which then
-- takes the event back too); only the second one draws the id. So of two transactions that append to one aggregate, the later
-- one draws its ids and versions after the earlier one has committed. A transaction in REPEATABLE READ that comes second fails
-- with a serialization error instead, as it would on any row.
--
-- A version that is given moves the counter to it, so both ways can follow each other. It must be above the counter: a version at
-- or below it was published already, or was drawn by somebody who did not hold the aggregate's lock, and would come out of order.
-- It may be more than one above, because the versions between may have been inserted without this function.
--
-- Callers that append to several aggregates in one transaction do so in one order of keys, or two of them may deadlock.
--
-- SECURITY DEFINER, so that a writer needs no rights on the tables.
CREATE FUNCTION outbox_append(
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
SET search_path = public, pg_temp
AS $$
DECLARE
    missing text := CASE
        WHEN coalesce(outbox_append.aggregate_type, '') = '' THEN 'aggregate_type'
        WHEN coalesce(outbox_append.aggregate_id, '') = '' THEN 'aggregate_id'
        WHEN coalesce(outbox_append.type, '') = '' THEN 'type'
        WHEN outbox_append.payload IS NULL THEN 'payload'
    END;
    given CONSTANT bigint := outbox_append.aggregate_version;
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'outbox_append: % must not be null or empty', missing
            USING ERRCODE = 'invalid_parameter_value', COLUMN = missing;
    END IF;
    IF jsonb_typeof(coalesce(headers, '{}')) <> 'object' THEN
        RAISE EXCEPTION 'outbox_append: headers must be a JSON object, such as {"traceparent": "..."}, and not of type %', jsonb_typeof(headers)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'headers';
    END IF;
    IF given < 1 THEN
        RAISE EXCEPTION 'outbox_append: aggregate_version must be 1 or more, and not %', given
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version';
    END IF;

    -- The lock is taken also when the condition does not hold and nothing is updated.
    INSERT INTO outbox_versions AS counter (aggregate_type, aggregate_id, version)
    VALUES (outbox_append.aggregate_type, outbox_append.aggregate_id, coalesce(given, 1))
    ON CONFLICT ON CONSTRAINT outbox_versions_pkey DO UPDATE
        SET version = coalesce(given, counter.version + 1)
        WHERE given IS NULL OR given > counter.version
    RETURNING counter.version INTO outbox_append.aggregate_version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'outbox_append: version % was given, but % % has had version % already', given,
                outbox_append.aggregate_type, outbox_append.aggregate_id, (
                    SELECT counter.version FROM outbox_versions counter
                    WHERE counter.aggregate_type = outbox_append.aggregate_type AND counter.aggregate_id = outbox_append.aggregate_id)
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version',
                HINT = 'Lock or change the aggregate first, draw its version then, and append last.';
    END IF;

    INSERT INTO outbox AS written (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
    VALUES (coalesce(outbox_append.event_id, outbox_uuid_v7()), outbox_append.aggregate_type, outbox_append.aggregate_id,
        outbox_append.aggregate_version, outbox_append.type, outbox_append.payload, coalesce(outbox_append.headers, '{}'))
    RETURNING written.event_id, written.id INTO outbox_append.event_id, outbox_append.id;
END $$;
COMMENT ON FUNCTION outbox_append IS 'Appends an event to the outbox in the caller''s transaction, and returns its version, event id and outbox id. Without a version it gets the next one of its aggregate, by a counter; the payload keeps its bytes. Errors of arguments have SQLSTATE 22023.';

DO $$
BEGIN
    CREATE ROLE outrider_writer NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role outrider_writer is missing and % may not create it', current_user
            USING HINT = 'Let an administrator run: CREATE ROLE outrider_writer NOLOGIN';
END $$;

REVOKE EXECUTE ON FUNCTION outbox_append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox_append TO outrider_writer;
