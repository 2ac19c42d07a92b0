-- One role a service, with just the grants it needs. They cannot log in: a deployment makes its logins members of them
-- (`GRANT outrider_relay TO my_relay_login`), or sets DB_ROLE. Roles belong to the whole cluster, so another database may have
-- made them already, also at this very moment.
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['outrider_api', 'outrider_relay', 'outrider_processor'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role % is missing and % may not create it', role_name, current_user
                    USING HINT = format('Let an administrator run: CREATE ROLE %I NOLOGIN', role_name);
        END;
    END LOOP;
END $$;

-- Every service looks at the schema version when it starts.
GRANT SELECT ON _sqlx_migrations TO outrider_api, outrider_relay, outrider_processor;

GRANT SELECT, INSERT ON orders TO outrider_api;
GRANT USAGE ON SEQUENCE orders_id_seq TO outrider_api;
GRANT INSERT ON order_transitions, outbox TO outrider_api;

GRANT SELECT ON outbox, outbox_id_seq TO outrider_relay;
GRANT SELECT, UPDATE ON relay_lanes TO outrider_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON relay_members TO outrider_relay;
GRANT EXECUTE ON FUNCTION outbox_make_partitions TO outrider_relay;

GRANT SELECT, UPDATE ON orders TO outrider_processor;
GRANT INSERT ON order_transitions, outbox TO outrider_processor;
GRANT SELECT, INSERT, UPDATE ON consumer_offsets TO outrider_processor;
GRANT SELECT, INSERT ON inbox, dead_letters TO outrider_processor;
