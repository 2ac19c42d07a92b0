-- `outrider status` and `outrider top` for operators, who are not the owner of the tables: where the lanes are, how much waits and since
-- when; of the events themselves they see nothing.
SET LOCAL lock_timeout = '5s';

GRANT SELECT (id, txid, lane, occurred_at) ON outbox TO outrider_operator;
GRANT SELECT ON SEQUENCE outbox_id_seq TO outrider_operator;
GRANT SELECT ON outbox_partitions TO outrider_operator;

-- They name the transactions that stay open, too: as for the relay, a grant that only an administrator can make.
DO $$
BEGIN
    -- Another database's migration may grant the same at this very moment. What counts is whether the grant is there in the end.
    BEGIN
        IF NOT pg_has_role('outrider_operator', 'pg_read_all_stats', 'MEMBER') THEN
            GRANT pg_read_all_stats TO outrider_operator;
        END IF;
    EXCEPTION
        WHEN insufficient_privilege OR unique_violation OR internal_error THEN NULL;
    END;
    IF NOT pg_has_role('outrider_operator', 'pg_read_all_stats', 'MEMBER') THEN
        RAISE NOTICE '% may not grant pg_read_all_stats: outrider_operator does not see since when others'' transactions are open', current_user
            USING HINT = 'Let an administrator run: GRANT pg_read_all_stats TO outrider_operator';
    END IF;
END $$;
