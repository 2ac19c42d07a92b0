-- Which Postgres cluster this is, for roles that may not call `pg_control_system()` themselves.
--
-- Postgres lets every role call it. Where that was taken back, the owner of the tables is the only one who needs it.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION outrider_cluster() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT s.system_identifier FROM pg_control_system() s $$;
COMMENT ON FUNCTION outrider_cluster IS 'Identifies the Postgres cluster: transaction ids and roles mean nothing in another one. A standby has that of its primary.';
REVOKE EXECUTE ON FUNCTION outrider_cluster FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outrider_cluster TO outrider_api, outrider_relay, outrider_operator;
