-- One transaction may move the positions of several partitions. One by one, each by its primary key: whatever the planner believes, there is
-- no walk over the rows of other groups, or over dead ones. In the order of the partitions, so that two such cannot lock each other out.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION consumer_advance(
    group_of text, topic_of text, partitions integer[], olds bigint[], anchor_offsets bigint[], anchor_hashes bigint[], anchor_times_ms bigint[]
) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    given record;
    missed integer[] := '{}';
BEGIN
    FOR given IN
        SELECT * FROM unnest(partitions, olds, anchor_offsets, anchor_hashes, anchor_times_ms) AS g (number, old, anchor, hash, time_ms)
        ORDER BY number
    LOOP
        IF given.old IS NULL THEN
            INSERT INTO consumer_offsets (group_id, topic, partition, next_offset, anchor_offset, anchor_hash, anchor_time_ms)
            VALUES (group_of, topic_of, given.number, given.anchor + 1, given.anchor, given.hash, given.time_ms)
            ON CONFLICT DO NOTHING;
        ELSE
            UPDATE consumer_offsets
            SET next_offset = given.anchor + 1, anchor_offset = given.anchor, anchor_hash = given.hash, anchor_time_ms = given.time_ms,
                empty_from = NULL, updated_at = now()
            WHERE group_id = group_of AND topic = topic_of AND partition = given.number AND next_offset = given.old;
        END IF;
        IF NOT FOUND THEN
            missed := missed || given.number;
        END IF;
    END LOOP;
    RETURN missed;
END $$;
COMMENT ON FUNCTION consumer_advance IS 'Moves the position of each partition from old (null: it has no row) to after its anchor, the last record that is applied; the arrays belong together. Returns the partitions that were not at old: they are as they were.';
REVOKE EXECUTE ON FUNCTION consumer_advance FROM PUBLIC;
GRANT EXECUTE ON FUNCTION consumer_advance TO outrider_processor;
