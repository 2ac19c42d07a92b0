-- Who may append events of which aggregate type by outbox_append() and outbox_debezium, and what such a call may bring.
SET LOCAL lock_timeout = '5s';

CREATE TABLE outbox_producers (
    role_name         name        NOT NULL,
    aggregate_type    text        NOT NULL
        CONSTRAINT outbox_producers_aggregate_type_check CHECK (octet_length(aggregate_type) BETWEEN 1 AND 200)
        -- The api and the processor write it, and their readers trust it.
        CONSTRAINT outbox_producers_reserved_check CHECK (aggregate_type <> 'order'),
    role_oid          oid         NOT NULL,
    system_identifier bigint      NOT NULL,
    granted_at        timestamptz NOT NULL DEFAULT now(),
    granted_by        text        NOT NULL,
    CONSTRAINT outbox_producers_pkey PRIMARY KEY (aggregate_type, role_name)
);
COMMENT ON TABLE outbox_producers IS 'Which roles may append events of which aggregate types by outbox_append() and outbox_debezium. All roles that are granted a type share its aggregates.';
COMMENT ON COLUMN outbox_producers.role_name IS 'A login or a group. A grant ends when its role is renamed.';
COMMENT ON COLUMN outbox_producers.aggregate_type IS 'outbox.aggregate_type. "order" is reserved for the api and the processor.';
COMMENT ON COLUMN outbox_producers.role_oid IS 'pg_authid.oid of the role when it was granted: a later role of the same name has another one and inherits nothing.';
COMMENT ON COLUMN outbox_producers.system_identifier IS 'The Postgres cluster that role_oid speaks of. In another one (dump and restore) only the name counts.';
COMMENT ON COLUMN outbox_producers.granted_at IS 'When it was granted.';
COMMENT ON COLUMN outbox_producers.granted_by IS 'Who granted it: outbox_producer_log.db_user and os_user.';

CREATE TABLE outbox_producer_log (
    id             bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT outbox_producer_log_pkey PRIMARY KEY,
    logged_at      timestamptz NOT NULL DEFAULT now(),
    action         text        NOT NULL CONSTRAINT outbox_producer_log_action_check CHECK (action IN ('grant', 'revoke')),
    role_name      name        NOT NULL,
    aggregate_type text        NOT NULL,
    db_user        text        NOT NULL DEFAULT session_user,
    os_user        text        NOT NULL,
    why            text
);
COMMENT ON TABLE outbox_producer_log IS 'Append-only: each grant and each revoke of an aggregate type.';
COMMENT ON COLUMN outbox_producer_log.id IS 'Identity.';
COMMENT ON COLUMN outbox_producer_log.logged_at IS 'When.';
COMMENT ON COLUMN outbox_producer_log.action IS 'grant or revoke.';
COMMENT ON COLUMN outbox_producer_log.role_name IS 'outbox_producers.role_name.';
COMMENT ON COLUMN outbox_producer_log.aggregate_type IS 'outbox_producers.aggregate_type.';
COMMENT ON COLUMN outbox_producer_log.db_user IS 'Who was logged in to Postgres.';
COMMENT ON COLUMN outbox_producer_log.os_user IS 'Who ran the command.';
COMMENT ON COLUMN outbox_producer_log.why IS 'Why, in that person''s words.';

CREATE FUNCTION outbox_producer_log_keep() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'outbox_producer_log is append-only' USING ERRCODE = 'feature_not_supported';
END $$;
COMMENT ON FUNCTION outbox_producer_log_keep IS 'Refuses to change or delete what outbox_producer_log holds.';
CREATE TRIGGER outbox_producer_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox_producer_log
    EXECUTE FUNCTION outbox_producer_log_keep();

-- Producers that run before this migration go on: outrider_writer, which is what their logins are members of, may append each type that
-- outbox_append() has a counter of. New types need a grant. A counter of "order" can only come from a writer that took it for its own.
INSERT INTO outbox_producers (role_name, aggregate_type, role_oid, system_identifier, granted_by)
SELECT r.rolname, known.aggregate_type, r.oid, s.system_identifier, 'migration: it was written before types were granted'
FROM (SELECT DISTINCT aggregate_type FROM outbox_versions) known, pg_roles r, pg_control_system() s
WHERE r.rolname = 'outrider_writer' AND known.aggregate_type <> 'order' AND octet_length(known.aggregate_type) BETWEEN 1 AND 200;

INSERT INTO outbox_producer_log (action, role_name, aggregate_type, os_user, why)
SELECT 'grant', role_name, aggregate_type, 'migration', 'it was written before types were granted' FROM outbox_producers;

GRANT SELECT, INSERT, DELETE ON outbox_producers TO outrider_operator;
GRANT SELECT, INSERT ON outbox_producer_log TO outrider_operator;

-- Whether `role` was granted the type, itself or as a member. 'USAGE': only memberships that count without a SET ROLE, as for any other
-- right in Postgres. Asking which cluster this is reads a file, so that is asked only when name and oid do not fit each other.
CREATE FUNCTION outbox_is_producer(role name, aggregate_type text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM outbox_producers p
        WHERE p.aggregate_type = outbox_is_producer.aggregate_type
            AND CASE
                WHEN pg_get_userbyid(p.role_oid) = p.role_name THEN pg_has_role(outbox_is_producer.role, p.role_oid, 'USAGE')
                WHEN p.system_identifier <> (SELECT s.system_identifier FROM pg_control_system() s)
                    THEN pg_has_role(outbox_is_producer.role, to_regrole(quote_ident(p.role_name)), 'USAGE')
            END
    )
$$;
COMMENT ON FUNCTION outbox_is_producer IS 'Whether a role may append events of an aggregate type: it, or a role that it is a member of, is in outbox_producers.';
REVOKE EXECUTE ON FUNCTION outbox_is_producer FROM PUBLIC;

-- Ends the call with 42501 unless the caller may append events of this type.
--
-- Who calls cannot be read from current_user: in a SECURITY DEFINER function that is the function's owner. It is the role that the
-- session has taken by SET ROLE, else its login. Postgres lets a login take only roles that it is a member of, however the setting is
-- made. So it is as good as session_user, and a service that has put off its login's rights (DB_ROLE) does not use them here.
-- A SECURITY DEFINER function of a producer's own does not count as its owner: the types are granted to the logins that call it.
--
-- Superusers, and the owner of this function and its tables, may write into the tables anyway. The reserved type is refused to them as
-- well: its versions are counted by the orders themselves, and the counter knows nothing of them.
CREATE FUNCTION outbox_refuse_producer(aggregate_type text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    caller CONSTANT name := coalesce(nullif(current_setting('role'), 'none')::name, session_user);
BEGIN
    IF aggregate_type = 'order' THEN
        RAISE EXCEPTION 'outbox_append: role % may not append events of type order, which is reserved for the api and the processor', caller
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'aggregate_type',
                HINT = 'Change orders by the api, or choose another aggregate type for events of your own.';
    END IF;
    IF NOT outbox_is_producer(caller, aggregate_type) AND NOT pg_has_role(caller, current_user, 'USAGE') THEN
        RAISE EXCEPTION 'outbox_append: role % may not append events of type %', caller, aggregate_type
            USING ERRCODE = 'insufficient_privilege', COLUMN = 'aggregate_type',
                HINT = format('Let an operator run: outrider producers grant %s %s', quote_ident(caller), quote_ident(aggregate_type));
    END IF;
END $$;
COMMENT ON FUNCTION outbox_refuse_producer IS 'Ends a call of outbox_append() unless its caller may append events of this aggregate type.';
REVOKE EXECUTE ON FUNCTION outbox_refuse_producer FROM PUBLIC;

-- The bounds of an event. A longer id or type does not fit into an index or a header of Kafka's, and would be found out only there.
CREATE FUNCTION outbox_refuse_bounds(aggregate_type text, aggregate_id text, type text, payload json, headers jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = public, pg_temp
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
COMMENT ON FUNCTION outbox_refuse_bounds IS 'Ends a call of outbox_append() whose arguments are missing, too long, or of the wrong form, with SQLSTATE 22023 and the name of the argument.';
REVOKE EXECUTE ON FUNCTION outbox_refuse_bounds FROM PUBLIC;

-- As before (see the migration that made it), but: the caller needs a grant for the type; lengths are bounded; and a version that is
-- given must be the one that the counter would have given. A leap is a gap that readers wait for without end, and the highest version
-- that there is would be an aggregate's last one.
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
SET search_path = public, pg_temp
AS $$
DECLARE
    given CONSTANT bigint := outbox_append.aggregate_version;
    last bigint;
BEGIN
    PERFORM outbox_refuse_bounds(outbox_append.aggregate_type, outbox_append.aggregate_id, outbox_append.type, outbox_append.payload,
        coalesce(outbox_append.headers, '{}'));
    PERFORM outbox_refuse_producer(outbox_append.aggregate_type);
    IF given < 1 THEN
        RAISE EXCEPTION 'outbox_append: aggregate_version must be 1 or more, and not %', given
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'aggregate_version';
    END IF;

    -- The lock is taken also when the condition does not hold and nothing is updated.
    INSERT INTO outbox_versions AS counter (aggregate_type, aggregate_id, version)
    VALUES (outbox_append.aggregate_type, outbox_append.aggregate_id, 1)
    ON CONFLICT ON CONSTRAINT outbox_versions_pkey DO UPDATE
        SET version = counter.version + 1
        WHERE given IS NULL OR given - 1 = counter.version
    RETURNING counter.version INTO outbox_append.aggregate_version;
    -- Without a counter the version is 1; a statement that ends in an error leaves no counter behind.
    IF NOT FOUND OR outbox_append.aggregate_version <> given THEN
        IF NOT FOUND THEN
            SELECT counter.version INTO last FROM outbox_versions counter
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

    INSERT INTO outbox AS written (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers)
    VALUES (coalesce(outbox_append.event_id, outbox_uuid_v7()), outbox_append.aggregate_type, outbox_append.aggregate_id,
        outbox_append.aggregate_version, outbox_append.type, outbox_append.payload, coalesce(outbox_append.headers, '{}'))
    RETURNING written.event_id, written.id INTO outbox_append.event_id, outbox_append.id;
END $$;
COMMENT ON FUNCTION outbox_append IS 'Appends an event to the outbox in the caller''s transaction, and returns its version, event id and outbox id. Without a version it gets the next one of its aggregate, by a counter; the payload keeps its bytes. Errors of arguments have SQLSTATE 22023; a type that the caller was not granted (outbox_producers) has 42501.';
