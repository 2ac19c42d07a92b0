-- The relay names transactions that stay open for long. Of other users' sessions an ordinary role sees neither since when they are in
-- a transaction nor their state; pg_read_all_stats is what lets it. Only an administrator can grant that, and the relay publishes as well
-- without it, so the lack of it does not stop the migration.
SET LOCAL lock_timeout = '5s';

DO $$
BEGIN
    -- Roles belong to the whole cluster: another database's migration may grant the same at this very moment, which shows as an
    -- internal error or a violated unique index. What counts is whether the grant is there in the end.
    BEGIN
        IF NOT pg_has_role('outrider_relay', 'pg_read_all_stats', 'MEMBER') THEN
            GRANT pg_read_all_stats TO outrider_relay;
        END IF;
    EXCEPTION
        WHEN insufficient_privilege OR unique_violation OR internal_error THEN NULL;
    END;
    IF NOT pg_has_role('outrider_relay', 'pg_read_all_stats', 'MEMBER') THEN
        RAISE NOTICE '% may not grant pg_read_all_stats: outrider_relay does not see since when others'' transactions are open', current_user
            USING HINT = 'Let an administrator run: GRANT pg_read_all_stats TO outrider_relay';
    END IF;
END $$;
