-- Reanchoring in pieces, while writers go on.
--
-- A cursor (position, seen) says of each row whether it was handed out, by numbers that a dump keeps: ids and transaction ids. So after
-- a restore it is still true of all rows that were dumped. Rows that are written after the restore are above every position, because
-- the sequence goes on where it was: they are new. What goes wrong is the next read. It takes this cluster's snapshot for `seen`, and
-- rows with transaction ids that this cluster has yet to give out are late to that one, and to the next, and are published without end.
--
-- Hence two rules. A database needs reanchoring if and only if it has a row whose transaction is not visible in the snapshot that sees
-- the row. pg_upgrade leaves no such row, since transaction ids go on: relays then go on by themselves. And to reanchor is to give such
-- rows a transaction id of the past.
SET LOCAL lock_timeout = '5s';

CREATE TABLE relay_reanchoring (
    only_one          boolean     NOT NULL DEFAULT true CONSTRAINT relay_reanchoring_pkey PRIMARY KEY
        CONSTRAINT relay_reanchoring_only_one_check CHECK (only_one),
    system_identifier bigint      NOT NULL,
    late_txid         bigint      NOT NULL,
    from_txid         bigint      NOT NULL,
    below_txid        bigint      NOT NULL DEFAULT 9223372036854775807,
    below_id          bigint      NOT NULL DEFAULT 9223372036854775807,
    rows_changed      bigint      NOT NULL DEFAULT 0,
    started_at        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE relay_reanchoring IS 'How far relay_reanchor() has come: one row while it is unfinished, none else. Relays wait meanwhile.';
COMMENT ON COLUMN relay_reanchoring.only_one IS 'True: there is never more than one row.';
COMMENT ON COLUMN relay_reanchoring.system_identifier IS 'The Postgres cluster that it was begun in.';
COMMENT ON COLUMN relay_reanchoring.late_txid IS 'Transaction that began it: outbox.txid of the rows that were late and are yet to be published.';
COMMENT ON COLUMN relay_reanchoring.from_txid IS 'Oldest transaction that ran then: rows of this and later ones are changed.';
COMMENT ON COLUMN relay_reanchoring.below_txid IS 'Rows are changed from the highest transaction id downwards. Those left are below (below_txid, below_id).';
COMMENT ON COLUMN relay_reanchoring.below_id IS 'See below_txid.';
COMMENT ON COLUMN relay_reanchoring.rows_changed IS 'Rows changed so far.';
COMMENT ON COLUMN relay_reanchoring.started_at IS 'When it began.';

-- One statement, so that the rows and the snapshot belong together.
CREATE FUNCTION outbox_foreign_row(OUT id bigint, OUT txid bigint, OUT next_txid bigint) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT o.id, o.txid, pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    FROM (
        (SELECT a.id, a.txid FROM outbox a
         WHERE a.txid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY a.txid DESC LIMIT 1)
        UNION ALL
        (SELECT b.id, b.txid FROM outbox b
         WHERE b.txid = ANY (ARRAY(SELECT x.txid::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) x (txid))) LIMIT 1)
    ) o
    -- A transaction sees its own rows.
    WHERE o.txid IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint
    LIMIT 1
$$;
COMMENT ON FUNCTION outbox_foreign_row IS 'A row of the outbox whose transaction is not visible in the snapshot that sees the row: it was written in another Postgres cluster. No row if there is none. With it, the next transaction id of this cluster.';
REVOKE EXECUTE ON FUNCTION outbox_foreign_row FROM PUBLIC;

-- The first step, in one transaction: marks the late rows, and has the cursors speak of this cluster.
--
-- Late rows are those that the cursor of their lane does not cover; they get the id of this transaction. No other row may have it, so
-- a row that had it by chance, from the other cluster, gets 0. The new `seen` ends just before this transaction: it covers every other
-- row at or below the position. No relay takes a lane until all steps are done: 0 identifies no cluster.
CREATE FUNCTION relay_reanchor_begin() RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    own CONSTANT bigint := pg_current_xact_id()::text::bigint;
    late_from bigint;
    late_running bigint[];
BEGIN
    -- Relays settle in here. One that runs all the same waits, and finds then that its lanes were taken.
    LOCK TABLE relay_lanes IN SHARE ROW EXCLUSIVE MODE;
    IF (SELECT max(l.position) FROM relay_lanes l) > (SELECT s.last_value FROM outbox_id_seq s) THEN
        RAISE EXCEPTION 'relay_reanchor: the sequence outbox_id_seq is behind the relays: new rows would get ids that were given out before'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Stop all writers and run: SELECT setval(''outbox_id_seq'', (SELECT greatest(max(o.id), max(l.position)) FROM outbox o, relay_lanes l))';
    END IF;
    SELECT coalesce(min(pg_snapshot_xmax(l.seen)::text::bigint), 0) INTO late_from FROM relay_lanes l;
    SELECT coalesce(array_agg(DISTINCT x.txid::text::bigint), '{}') INTO late_running
        FROM relay_lanes l CROSS JOIN LATERAL pg_snapshot_xip(l.seen) x (txid);
    UPDATE outbox o
        SET txid = CASE
            WHEN o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen) THEN own
            ELSE 0
        END
        FROM relay_lanes l
        WHERE l.lane = o.lane AND (o.txid = own OR o.txid >= late_from OR o.txid = ANY (late_running))
            AND (o.txid = own OR (o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen)));
    -- Rows that are late for a type that waits: the lane has passed over them, and passes over them again while the type waits.
    UPDATE outbox o SET txid = own
        FROM relay_waiting w
        WHERE w.lane = o.lane AND w.aggregate_type = o.aggregate_type AND o.id <= w.position
            AND NOT pg_visible_in_snapshot(o.txid::text::xid8, w.seen) AND o.txid <> own
            AND (o.txid >= (SELECT min(pg_snapshot_xmax(m.seen)::text::bigint) FROM relay_waiting m)
                OR o.txid = ANY (ARRAY(SELECT x.txid::text::bigint FROM relay_waiting m CROSS JOIN LATERAL pg_snapshot_xip(m.seen) x (txid))));
    UPDATE relay_waiting SET seen = CASE WHEN position > 0 THEN format('%s:%s:', own, own)::pg_snapshot END;
    UPDATE relay_lanes
        SET seen = CASE WHEN position > 0 THEN format('%s:%s:', own, own)::pg_snapshot END,
            system_identifier = 0, owner = NULL, expires_at = '-infinity', token = token + 1;
    INSERT INTO relay_reanchoring (system_identifier, late_txid, from_txid)
        SELECT s.system_identifier, own, pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM pg_control_system() s;
END $$;
COMMENT ON FUNCTION relay_reanchor_begin IS 'The first step of relay_reanchor().';
REVOKE EXECUTE ON FUNCTION relay_reanchor_begin FROM PUBLIC;

-- Gives transaction id 0, which is of the past in every snapshot, to so many rows. A row that was written meanwhile may be among
-- them. It is new, above all positions, and new rows are read whatever their transaction.
--
-- From the highest transaction id downwards: so the index entries of rows that were changed are never walked over again.
CREATE FUNCTION relay_reanchor_piece(piece_rows integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    run relay_reanchoring;
    changed_rows bigint;
    lowest record;
BEGIN
    SELECT * INTO STRICT run FROM relay_reanchoring;
    WITH piece AS MATERIALIZED (
        SELECT o.lane, o.id, o.txid FROM outbox o
        WHERE o.txid >= run.from_txid AND o.txid <> run.late_txid AND (o.txid, o.id) < (run.below_txid, run.below_id)
        ORDER BY o.txid DESC, o.id DESC
        LIMIT piece_rows
    ), changed AS (
        UPDATE outbox o SET txid = 0 FROM piece WHERE o.lane = piece.lane AND o.id = piece.id
    )
    SELECT piece.txid, piece.id, count(*) OVER () AS piece_rows INTO lowest FROM piece ORDER BY piece.txid, piece.id LIMIT 1;
    changed_rows := coalesce(lowest.piece_rows, 0);
    IF changed_rows > 0 THEN
        UPDATE relay_reanchoring
            SET below_txid = lowest.txid, below_id = lowest.id, rows_changed = rows_changed + changed_rows;
    END IF;
    RETURN changed_rows;
END $$;
COMMENT ON FUNCTION relay_reanchor_piece IS 'A middle step of relay_reanchor(); returns how many rows it changed.';
REVOKE EXECUTE ON FUNCTION relay_reanchor_piece FROM PUBLIC;

-- Takes the first step, or a middle one, also where rows break a CHECK that is younger than they are (NOT VALID). An UPDATE of such a row
-- is refused, whatever column it changes, and one odd row must not keep a database from being reanchored. So those checks are taken off
-- for that step. Only then are writers stopped: for one piece, and not before the lock was had within two seconds.
CREATE FUNCTION relay_reanchor_change(piece_rows integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    younger record;
    put_back text[] := '{}';
    changed_rows bigint := 0;
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM relay_reanchoring) THEN
            RETURN relay_reanchor_piece(piece_rows);
        END IF;
        PERFORM relay_reanchor_begin();
        RETURN 0;
    EXCEPTION
        WHEN check_violation THEN NULL;
    END;
    FOR younger IN
        SELECT c.conname, pg_get_constraintdef(c.oid) AS definition FROM pg_constraint c
        WHERE c.conrelid = 'outbox'::regclass AND c.contype = 'c' AND NOT c.convalidated
    LOOP
        EXECUTE format('ALTER TABLE outbox DROP CONSTRAINT %I', younger.conname);
        put_back := put_back || format('ALTER TABLE outbox ADD CONSTRAINT %I %s', younger.conname, younger.definition);
    END LOOP;
    IF EXISTS (SELECT FROM relay_reanchoring) THEN
        changed_rows := relay_reanchor_piece(piece_rows);
    ELSE
        PERFORM relay_reanchor_begin();
    END IF;
    FOR i IN 1 .. cardinality(put_back) LOOP
        EXECUTE put_back[i];
    END LOOP;
    RETURN changed_rows;
END $$;
COMMENT ON FUNCTION relay_reanchor_change IS 'A step of relay_reanchor() that changes rows: the first one, else a middle one. Returns how many a middle one changed.';
REVOKE EXECUTE ON FUNCTION relay_reanchor_change FROM PUBLIC;

-- One step, whichever is next. True when all is done.
CREATE FUNCTION relay_reanchor_step(piece_rows integer) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    here CONSTANT bigint := (SELECT s.system_identifier FROM pg_control_system() s);
    run relay_reanchoring;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'relay_reanchor must be called in READ COMMITTED';
    END IF;
    -- Of two callers, one steps after the other. Relays may look.
    LOCK TABLE relay_reanchoring IN EXCLUSIVE MODE;
    SELECT * INTO run FROM relay_reanchoring;
    IF NOT FOUND THEN
        IF NOT EXISTS (SELECT FROM outbox_foreign_row()) THEN
            RAISE NOTICE 'relay_reanchor: nothing to do: all transaction ids in the outbox are of this cluster''s past';
            RETURN true;
        END IF;
        PERFORM relay_reanchor_change(piece_rows);
        RETURN false;
    END IF;
    IF relay_reanchor_change(piece_rows) > 0 THEN
        RETURN false;
    END IF;
    DELETE FROM relay_reanchoring;
    -- Begun in another cluster, dumped there and restored here: what was begun is complete now, and has to be done for this cluster too.
    IF run.system_identifier <> here AND EXISTS (SELECT FROM outbox_foreign_row()) THEN
        PERFORM relay_reanchor_change(piece_rows);
        RETURN false;
    END IF;
    UPDATE relay_lanes
        SET system_identifier = here, owner = NULL, expires_at = '-infinity', token = token + 1;
    RAISE NOTICE 'relay_reanchor: done, % rows changed since %', run.rows_changed, run.started_at;
    RETURN true;
END $$;
COMMENT ON FUNCTION relay_reanchor_step IS 'The next step of relay_reanchor(), in the caller''s transaction. True when all is done.';
REVOKE EXECUTE ON FUNCTION relay_reanchor_step FROM PUBLIC;

-- A procedure, because it commits after each step: no transaction is long, nothing is locked that writers wait for, and what is done
-- stays done when it is interrupted. It has no search path of its own, since Postgres lets no procedure with a SET clause commit.
DROP FUNCTION relay_reanchor();
CREATE PROCEDURE relay_reanchor(piece_rows integer DEFAULT 10000)
LANGUAGE plpgsql
AS $$
DECLARE
    done boolean := false;
BEGIN
    WHILE NOT done LOOP
        done := public.relay_reanchor_step(piece_rows);
        COMMIT;
    END LOOP;
END $$;
COMMENT ON PROCEDURE relay_reanchor IS 'After a dump and restore into another Postgres cluster: makes the outbox and the relays'' cursors fit its transaction ids. Writers may go on. Relays wait until it is done. Call it again when it was interrupted. Does nothing where nothing needs it.';
REVOKE EXECUTE ON PROCEDURE relay_reanchor FROM PUBLIC;

COMMENT ON COLUMN relay_lanes.system_identifier IS 'The Postgres cluster in which the cursor was settled. In another one, a relay looks whether transaction ids have gone on (pg_upgrade) or begun again (dump and restore; then relay_reanchor() is due). 0 while relay_reanchor() is unfinished.';

GRANT SELECT ON relay_reanchoring TO outrider_relay, outrider_operator;
GRANT EXECUTE ON FUNCTION outbox_foreign_row TO outrider_relay;
