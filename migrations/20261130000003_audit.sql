-- What operators did is written down in their own name and at its own time, and no API key changes without being written down.
SET LOCAL lock_timeout = '5s';

-- Id, time and login of an entry are their defaults. Who may name them could write an entry for somebody else, or for another day.
REVOKE INSERT ON relay_parked_log, dead_letter_log, offset_log, api_key_log, outbox_producer_log FROM outrider_operator;
GRANT INSERT (action, aggregate_type, aggregate_id, waiting, outbox_id, event_id, aggregate_version, reason, os_user, why)
    ON relay_parked_log TO outrider_operator;
GRANT INSERT (action, group_id, topic, record_key, event_id, event_type, aggregate_version, reason, waiting, os_user, why)
    ON dead_letter_log TO outrider_operator;
GRANT INSERT (group_id, topic, partition, old_offset, new_offset, cause, os_user, why) ON offset_log TO outrider_operator;
GRANT INSERT (action, api_key_id, replaced_by, os_user, why) ON api_key_log TO outrider_operator;
GRANT INSERT (action, role_name, aggregate_type, os_user, why) ON outbox_producer_log TO outrider_operator;

-- Runs at the commit, when the entry is there; `now()` is that of the transaction, as `logged_at` is. Who owns the table can switch
-- triggers off, so asking its owner for an entry would prove nothing.
CREATE FUNCTION api_keys_logged() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed CONSTANT text := CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END;
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID), 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' AND NOT starts_with(NEW.created_by, session_user || ', ') THEN
        RAISE EXCEPTION 'the API key % names somebody else as its maker', changed USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT FROM public.api_key_log l WHERE l.logged_at = now() AND changed IN (l.api_key_id, l.replaced_by)) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the API key % changes without an entry in api_key_log', changed
        USING ERRCODE = 'insufficient_privilege', HINT = 'Use outrider api-keys, which writes both in one transaction.';
END $$;
COMMENT ON FUNCTION api_keys_logged IS 'Refuses a change of an API key that the same transaction does not write into api_key_log.';
CREATE CONSTRAINT TRIGGER api_keys_logged
    AFTER INSERT OR DELETE OR UPDATE OF id, caller_id, secret_hash, name, scopes, user_id, created_at, created_by, expires_at, revoked_at, replaced_by
    ON api_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION api_keys_logged();
CREATE INDEX api_key_log_logged_idx ON api_key_log (logged_at);
