-- What a consumer group does with events that fail: their key waits, in order, and everything else goes on.
SET LOCAL lock_timeout = '5s';

CREATE TABLE blocked_keys (
    group_id        text        NOT NULL,
    topic           text        NOT NULL,
    record_key      bytea       NOT NULL,
    partition       integer     NOT NULL,
    state           text        NOT NULL
        CONSTRAINT blocked_keys_state_check CHECK (state IN ('retrying', 'waiting', 'parked')),
    reason          text        NOT NULL,
    fingerprint     text        NOT NULL,
    attempts        integer     NOT NULL CONSTRAINT blocked_keys_attempts_check CHECK (attempts >= 1),
    first_failed_at timestamptz NOT NULL DEFAULT now(),
    last_failed_at  timestamptz NOT NULL DEFAULT now(),
    next_attempt_at timestamptz,
    CONSTRAINT blocked_keys_pkey PRIMARY KEY (group_id, topic, record_key),
    CONSTRAINT blocked_keys_next_attempt_check CHECK ((state = 'parked') = (next_attempt_at IS NULL))
);
-- A worker asks which keys of its partition are due.
CREATE INDEX blocked_keys_due_idx ON blocked_keys (group_id, topic, partition, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
COMMENT ON TABLE blocked_keys IS 'Keys whose events wait in dead_letters: the first of them failed, and the later ones keep their order behind it.';
COMMENT ON COLUMN blocked_keys.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN blocked_keys.topic IS 'Topic.';
COMMENT ON COLUMN blocked_keys.record_key IS 'Key of the records.';
COMMENT ON COLUMN blocked_keys.partition IS 'Partition in which the key was blocked: whoever is assigned it tries the key again.';
COMMENT ON COLUMN blocked_keys.state IS 'retrying: failed in a way that may pass; waiting: an elder version has not come yet; parked: given up until an operator replays or discards.';
COMMENT ON COLUMN blocked_keys.reason IS 'Why the last attempt failed.';
COMMENT ON COLUMN blocked_keys.fingerprint IS 'Hash of event type and reason without its numbers and ids: failures of one kind have the same.';
COMMENT ON COLUMN blocked_keys.attempts IS 'How often the first event was tried since it last made progress.';
COMMENT ON COLUMN blocked_keys.first_failed_at IS 'When the first event first failed: the limit on its age counts from here.';
COMMENT ON COLUMN blocked_keys.last_failed_at IS 'When it last failed.';
COMMENT ON COLUMN blocked_keys.next_attempt_at IS 'When it is tried again; null when parked.';

ALTER TABLE dead_letters
    ALTER COLUMN reason DROP NOT NULL,
    ADD COLUMN aggregate_version bigint,
    ADD COLUMN fingerprint text,
    ADD CONSTRAINT dead_letters_fingerprint_check CHECK ((reason IS NULL) = (fingerprint IS NULL)) NOT VALID;
-- A key is worked off in this order: a version that came before its elder goes after it.
CREATE INDEX dead_letters_key_idx ON dead_letters (group_id, topic, record_key, aggregate_version, record_offset);
COMMENT ON TABLE dead_letters IS 'Records that wait: those of a blocked key, and those without a key that could not be applied. They go when they are applied or discarded.';
COMMENT ON COLUMN dead_letters.reason IS 'Why it was refused; null if it waits behind an elder of its key.';
COMMENT ON COLUMN dead_letters.aggregate_version IS 'Header "aggregate_version", when there was a readable one.';
COMMENT ON COLUMN dead_letters.fingerprint IS 'As blocked_keys.fingerprint; null with the reason.';

CREATE TABLE dead_letter_requests (
    id             bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT dead_letter_requests_pkey PRIMARY KEY,
    group_id       text        NOT NULL,
    topic          text        NOT NULL,
    partition      integer     NOT NULL,
    record_key     bytea,
    dead_letter_id bigint,
    dry_run        boolean     NOT NULL,
    requested_at   timestamptz NOT NULL DEFAULT now(),
    requested_by   text        NOT NULL,
    done_at        timestamptz,
    applied        bigint,
    waiting        bigint,
    reason         text,
    CONSTRAINT dead_letter_requests_what_check CHECK ((record_key IS NULL) <> (dead_letter_id IS NULL)),
    CONSTRAINT dead_letter_requests_done_check CHECK ((done_at IS NULL) = (applied IS NULL) AND (done_at IS NULL) = (waiting IS NULL))
);
-- A worker asks what is to be done in its partition.
CREATE INDEX dead_letter_requests_open_idx ON dead_letter_requests (group_id, topic, partition, id) WHERE done_at IS NULL;
COMMENT ON TABLE dead_letter_requests IS 'Blocked keys, or single records without a key, that an operator wants to be applied now. The processor that has the partition does it and writes down what came of it.';
COMMENT ON COLUMN dead_letter_requests.id IS 'Identity; requests are carried out in this order.';
COMMENT ON COLUMN dead_letter_requests.group_id IS 'blocked_keys.group_id.';
COMMENT ON COLUMN dead_letter_requests.topic IS 'blocked_keys.topic.';
COMMENT ON COLUMN dead_letter_requests.partition IS 'blocked_keys.partition, or dead_letters.partition of a record without a key.';
COMMENT ON COLUMN dead_letter_requests.record_key IS 'The key whose records are to be applied.';
COMMENT ON COLUMN dead_letter_requests.dead_letter_id IS 'The record without a key that is to be applied.';
COMMENT ON COLUMN dead_letter_requests.dry_run IS 'Only to see what would come of it: the handlers run, and all is rolled back.';
COMMENT ON COLUMN dead_letter_requests.requested_at IS 'When it was asked for.';
COMMENT ON COLUMN dead_letter_requests.requested_by IS 'Who asked for it: Postgres login and operating system''s user.';
COMMENT ON COLUMN dead_letter_requests.done_at IS 'When it was carried out; null before.';
COMMENT ON COLUMN dead_letter_requests.applied IS 'Records that were applied, or would have been.';
COMMENT ON COLUMN dead_letter_requests.waiting IS 'Records of the key that still wait, or would have.';
COMMENT ON COLUMN dead_letter_requests.reason IS 'Why the first of those that still wait was refused again; null if none does.';

CREATE TABLE dead_letter_log (
    id          bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT dead_letter_log_pkey PRIMARY KEY,
    logged_at   timestamptz NOT NULL DEFAULT now(),
    action      text        NOT NULL CONSTRAINT dead_letter_log_action_check CHECK (action IN ('replay', 'discard')),
    group_id    text        NOT NULL,
    topic       text        NOT NULL,
    record_key  bytea,
    event_id    uuid,
    event_type  text,
    aggregate_version bigint,
    reason      text,
    waiting     bigint      NOT NULL,
    db_user     text        NOT NULL DEFAULT session_user,
    os_user     text        NOT NULL,
    why         text,
    CONSTRAINT dead_letter_log_discard_check CHECK (action <> 'discard' OR (why IS NOT NULL AND trim(why) <> ''))
);
COMMENT ON TABLE dead_letter_log IS 'Append-only: each replay and each discard of dead letters.';
COMMENT ON COLUMN dead_letter_log.id IS 'Identity.';
COMMENT ON COLUMN dead_letter_log.logged_at IS 'When it was asked for.';
COMMENT ON COLUMN dead_letter_log.action IS 'replay or discard.';
COMMENT ON COLUMN dead_letter_log.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN dead_letter_log.topic IS 'Topic.';
COMMENT ON COLUMN dead_letter_log.record_key IS 'Key of the records; null for a record without one.';
COMMENT ON COLUMN dead_letter_log.event_id IS 'The event that was discarded, if it had a readable id.';
COMMENT ON COLUMN dead_letter_log.event_type IS 'Its type, if it had a readable one.';
COMMENT ON COLUMN dead_letter_log.aggregate_version IS 'Its version, if it had a readable one.';
COMMENT ON COLUMN dead_letter_log.reason IS 'Why it, or the first event of the key, had been refused.';
COMMENT ON COLUMN dead_letter_log.waiting IS 'Records of the key that waited then, one that was discarded included.';
COMMENT ON COLUMN dead_letter_log.db_user IS 'Who was logged in to Postgres.';
COMMENT ON COLUMN dead_letter_log.os_user IS 'Who ran the command.';
COMMENT ON COLUMN dead_letter_log.why IS 'Why, in that person''s words.';

CREATE FUNCTION dead_letter_log_keep() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'dead_letter_log is append-only' USING ERRCODE = 'feature_not_supported';
END $$;
COMMENT ON FUNCTION dead_letter_log_keep IS 'Refuses to change or delete what dead_letter_log holds.';
CREATE TRIGGER dead_letter_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON dead_letter_log
    EXECUTE FUNCTION dead_letter_log_keep();

-- An order that failed says why.
ALTER TABLE orders ADD COLUMN failure_reason text;
ALTER TABLE orders ADD CONSTRAINT orders_failure_reason_check
    CHECK ((status = 'Failed') = (failure_reason IS NOT NULL)) NOT VALID;
COMMENT ON COLUMN orders.failure_reason IS 'Why it is Failed; null in every other state.';
ALTER TABLE order_transitions ADD COLUMN reason text;
COMMENT ON COLUMN order_transitions.reason IS 'Why, for a change to Failed.';
ALTER TYPE order_document ADD ATTRIBUTE failure_reason text;

GRANT SELECT, INSERT, UPDATE, DELETE ON blocked_keys TO outrider_processor;
GRANT SELECT, UPDATE, DELETE ON dead_letters TO outrider_processor;
GRANT SELECT, UPDATE (done_at, applied, waiting, reason), DELETE ON dead_letter_requests TO outrider_processor;

GRANT SELECT, UPDATE, DELETE ON blocked_keys TO outrider_operator;
GRANT SELECT, DELETE ON dead_letters TO outrider_operator;
GRANT SELECT, INSERT, DELETE ON dead_letter_requests TO outrider_operator;
GRANT SELECT, INSERT ON dead_letter_log TO outrider_operator;
GRANT SELECT, UPDATE ON consumer_offsets TO outrider_operator;
