-- A batch takes out of the inbox again what it could not apply, a few ids out of a great many.
--
-- As `event_id = ANY (...)` in one DELETE, the planner walks the whole index of the day and compares each id of it, as long as the day has
-- no statistics: it believes that one row in two hundred is of the group, and one of these of the day. 220 ms at 400,000 rows. One
-- by one, by all columns of the primary key, there is one way only, whatever it believes: 0.3 ms for ten.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION inbox_take_out(group_of text, event_ids uuid[], days date[]) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    event record;
BEGIN
    FOR event IN SELECT * FROM unnest(event_ids, days) AS given (id, day) LOOP
        DELETE FROM inbox WHERE group_id = group_of AND event_id = event.id AND occurred_on = event.day;
    END LOOP;
END $$;
COMMENT ON FUNCTION inbox_take_out IS 'Deletes these rows of the inbox, each found by its primary key; the arrays belong together.';
REVOKE EXECUTE ON FUNCTION inbox_take_out FROM PUBLIC;
GRANT EXECUTE ON FUNCTION inbox_take_out TO outrider_processor;
