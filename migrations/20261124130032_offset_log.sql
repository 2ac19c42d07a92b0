-- Who has accepted what the brokers have in place of a position that was lost.
SET LOCAL lock_timeout = '5s';

CREATE TABLE offset_log (
    id          bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT offset_log_pkey PRIMARY KEY,
    logged_at   timestamptz NOT NULL DEFAULT now(),
    group_id    text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    old_offset  bigint,
    new_offset  bigint      NOT NULL,
    cause       text        NOT NULL,
    db_user     text        NOT NULL DEFAULT session_user,
    os_user     text        NOT NULL,
    why         text
);
COMMENT ON TABLE offset_log IS 'Positions that an operator has set to what the brokers have. Append-only.';
COMMENT ON COLUMN offset_log.id IS 'In the order of the actions.';
COMMENT ON COLUMN offset_log.logged_at IS 'When.';
COMMENT ON COLUMN offset_log.group_id IS 'Kafka consumer group.';
COMMENT ON COLUMN offset_log.topic IS 'Topic.';
COMMENT ON COLUMN offset_log.partition IS 'Number of the partition.';
COMMENT ON COLUMN offset_log.old_offset IS 'The position that was lost; null: there was none in Postgres, only Kafka''s own.';
COMMENT ON COLUMN offset_log.new_offset IS 'Where the group goes on.';
COMMENT ON COLUMN offset_log.cause IS 'What was wrong, in words.';
COMMENT ON COLUMN offset_log.db_user IS 'Postgres role that did it.';
COMMENT ON COLUMN offset_log.os_user IS 'User of the operating system, as the command line saw it.';
COMMENT ON COLUMN offset_log.why IS 'What the operator gave as the reason.';

CREATE FUNCTION offset_log_keep() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'offset_log is append-only' USING ERRCODE = 'feature_not_supported';
END $$;
COMMENT ON FUNCTION offset_log_keep IS 'Keeps rows of offset_log as they are.';
CREATE TRIGGER offset_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON offset_log EXECUTE FUNCTION offset_log_keep();

GRANT SELECT, INSERT ON offset_log TO outrider_operator;
