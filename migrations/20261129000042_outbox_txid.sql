-- A row that named another transaction than its own, and committed late, was passed by and never published: the relay finds late rows by
-- their transaction. Whatever an INSERT names, the row gets its own. The WHEN clause costs no call of the function where it is right.
-- What restores, replicates or re-anchors rows keeps what they have: triggers are made after the rows of a dump, and replication runs none.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION outbox_own_txid() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.txid := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END;
$$;

CREATE TRIGGER outbox_own_txid BEFORE INSERT ON outbox
    FOR EACH ROW WHEN (NEW.txid IS DISTINCT FROM pg_current_xact_id()::text::bigint) EXECUTE FUNCTION outbox_own_txid();

COMMENT ON FUNCTION outbox_own_txid() IS 'Gives a row of the outbox the transaction that inserts it, whatever the INSERT named.';
