-- The outbox under the column names of Debezium's outbox event router, for writers that were made for it.
SET LOCAL lock_timeout = '5s';

-- Such writers insert a row and delete it at once, in the same transaction: the row was only meant for the log. So the view shows a
-- transaction the rows that it has written itself (over the index on txid) and nobody else's, which lets that DELETE hit its row and
-- answer 1, as an object-relational mapper expects; nothing is deleted.
--
-- Payload, timestamp and tracingspancontext are text, because Postgres assigns anything to text: json, jsonb and text for the payload,
-- whatever the writer's column was.
CREATE VIEW outbox_debezium AS
SELECT
    event_id                     AS id,
    aggregate_type               AS aggregatetype,
    aggregate_id                 AS aggregateid,
    type,
    payload::text                AS payload,
    headers ->> 'timestamp'      AS "timestamp",
    NULL::text                   AS tracingspancontext
FROM outbox
WHERE txid = pg_current_xact_id_if_assigned()::text::bigint;

COMMENT ON VIEW outbox_debezium IS 'outbox for writers made for Debezium''s outbox event router. An INSERT appends an event by outbox_append(); a DELETE does nothing; a SELECT shows the events of the present transaction.';
COMMENT ON COLUMN outbox_debezium.id IS 'outbox.event_id; a new one when not given.';
COMMENT ON COLUMN outbox_debezium.aggregatetype IS 'outbox.aggregate_type.';
COMMENT ON COLUMN outbox_debezium.aggregateid IS 'outbox.aggregate_id.';
COMMENT ON COLUMN outbox_debezium.type IS 'outbox.type.';
COMMENT ON COLUMN outbox_debezium.payload IS 'outbox.payload: JSON, not null.';
COMMENT ON COLUMN outbox_debezium."timestamp" IS 'Passed on as the header "timestamp" when given; occurred_at is the database''s time all the same.';
COMMENT ON COLUMN outbox_debezium.tracingspancontext IS 'Text of java.util.Properties, of which traceparent and tracestate become headers; anything else in it is left out.';

CREATE FUNCTION outbox_debezium_write() RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    -- java.util.Properties puts a backslash before '=' and ':' in a value.
    context CONSTANT text := replace(replace(NEW.tracingspancontext, '\=', '='), '\:', ':');
    headers CONSTANT jsonb := jsonb_strip_nulls(jsonb_build_object(
        'traceparent', substring(context FROM '(?n)^\s*traceparent\s*[=:]\s*([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\s*$'),
        'tracestate', substring(context FROM '(?n)^\s*tracestate\s*[=:]\s*(\S.*?)\s*$'),
        'timestamp', NEW."timestamp"));
BEGIN
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        RAISE EXCEPTION 'outbox_debezium: events are never changed' USING ERRCODE = 'feature_not_supported';
    END IF;
    SELECT appended.event_id INTO NEW.id
        FROM outbox_append(NEW.aggregatetype, NEW.aggregateid, NEW.type, NEW.payload::json, headers, event_id => NEW.id) appended;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION outbox_debezium_write IS 'What happens to rows written to outbox_debezium.';

CREATE TRIGGER outbox_debezium_write INSTEAD OF INSERT OR UPDATE OR DELETE ON outbox_debezium
    FOR EACH ROW EXECUTE FUNCTION outbox_debezium_write();

GRANT SELECT, INSERT, DELETE ON outbox_debezium TO outrider_writer;
