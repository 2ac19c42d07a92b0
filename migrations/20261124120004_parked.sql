-- Letting parked keys go on: requests to the relays, and who asked for what.
SET LOCAL lock_timeout = '5s';

CREATE TABLE relay_parked_requests (
    lane           smallint    NOT NULL,
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    requested_at   timestamptz NOT NULL DEFAULT now(),
    requested_by   text        NOT NULL,
    begun_token    bigint,
    CONSTRAINT relay_parked_requests_pkey PRIMARY KEY (lane, aggregate_type, aggregate_id)
);
COMMENT ON TABLE relay_parked_requests IS 'Parked keys that are to be published again. The relay that holds the lane publishes what is parked of the key, in order, and deletes the request when nothing is left or Kafka refuses again.';
COMMENT ON COLUMN relay_parked_requests.lane IS 'relay_parked.lane.';
COMMENT ON COLUMN relay_parked_requests.aggregate_type IS 'relay_parked.aggregate_type.';
COMMENT ON COLUMN relay_parked_requests.aggregate_id IS 'relay_parked.aggregate_id.';
COMMENT ON COLUMN relay_parked_requests.requested_at IS 'When it was asked for.';
COMMENT ON COLUMN relay_parked_requests.requested_by IS 'Who asked for it: relay_parked_log.db_user and os_user.';
COMMENT ON COLUMN relay_parked_requests.begun_token IS 'relay_lanes.token of the relay that has begun with it: while that relay holds the lane, nothing of the key may be discarded.';

CREATE TABLE relay_parked_log (
    id                bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT relay_parked_log_pkey PRIMARY KEY,
    logged_at         timestamptz NOT NULL DEFAULT now(),
    action            text        NOT NULL CONSTRAINT relay_parked_log_action_check CHECK (action IN ('retry', 'discard')),
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    waiting           bigint      NOT NULL,
    outbox_id         bigint,
    event_id          uuid,
    aggregate_version bigint,
    reason            text,
    db_user           text        NOT NULL DEFAULT session_user,
    os_user           text        NOT NULL,
    why               text,
    CONSTRAINT relay_parked_log_discard_check
        CHECK (action <> 'discard' OR (event_id IS NOT NULL AND aggregate_version IS NOT NULL AND trim(why) <> '' AND why IS NOT NULL))
);
COMMENT ON TABLE relay_parked_log IS 'Append-only: each retry and each discard of parked events.';
COMMENT ON COLUMN relay_parked_log.id IS 'Identity.';
COMMENT ON COLUMN relay_parked_log.logged_at IS 'When it was asked for.';
COMMENT ON COLUMN relay_parked_log.action IS 'retry or discard.';
COMMENT ON COLUMN relay_parked_log.aggregate_type IS 'Of the key.';
COMMENT ON COLUMN relay_parked_log.aggregate_id IS 'Of the key.';
COMMENT ON COLUMN relay_parked_log.waiting IS 'Events of the key that were parked then, one that was discarded included.';
COMMENT ON COLUMN relay_parked_log.outbox_id IS 'outbox.id of the event that was discarded.';
COMMENT ON COLUMN relay_parked_log.event_id IS 'The event that was discarded.';
COMMENT ON COLUMN relay_parked_log.aggregate_version IS 'Its version, which no consumer will ever see.';
COMMENT ON COLUMN relay_parked_log.reason IS 'relay_parked.reason of the key''s first event then, or of the one that was discarded.';
COMMENT ON COLUMN relay_parked_log.db_user IS 'Who was logged in to Postgres.';
COMMENT ON COLUMN relay_parked_log.os_user IS 'Who ran the command.';
COMMENT ON COLUMN relay_parked_log.why IS 'Why, in that person''s words.';

CREATE FUNCTION relay_parked_log_keep() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'relay_parked_log is append-only' USING ERRCODE = 'feature_not_supported';
END $$;
COMMENT ON FUNCTION relay_parked_log_keep IS 'Refuses to change or delete what relay_parked_log holds.';
CREATE TRIGGER relay_parked_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON relay_parked_log
    EXECUTE FUNCTION relay_parked_log_keep();

-- A discard must know that no relay is about to publish the event, and a retry must not begin in the middle of a discard. Between
-- operators, both take this lock first. Between an operator and a relay, the row lock on the request decides: a relay marks the
-- request (begun_token) before it reads the parked rows, in a statement of its own; a discard locks it, looks at the mark, deletes
-- the event and takes the mark away, in one transaction. Whichever comes second sees all of the other.
CREATE FUNCTION relay_parked_lock() RETURNS void
LANGUAGE sql
AS $$ SELECT pg_advisory_xact_lock(hashtext('relay_parked')) $$;
COMMENT ON FUNCTION relay_parked_lock IS 'Lets one operator after the other change what is parked; held until the transaction ends.';

DO $$
BEGIN
    CREATE ROLE outrider_operator NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role outrider_operator is missing and % may not create it', current_user
            USING HINT = 'Let an administrator run: CREATE ROLE outrider_operator NOLOGIN';
END $$;

GRANT UPDATE (reason), DELETE ON relay_parked TO outrider_relay;
GRANT SELECT, UPDATE (begun_token), DELETE ON relay_parked_requests TO outrider_relay;

GRANT SELECT ON _sqlx_migrations, relay_lanes, relay_members, relay_routes, relay_parked_log TO outrider_operator;
GRANT SELECT, DELETE ON relay_parked TO outrider_operator;
GRANT SELECT, INSERT, UPDATE (begun_token) ON relay_parked_requests TO outrider_operator;
GRANT INSERT ON relay_parked_log TO outrider_operator;
