-- What the relays share: who holds which lane, and how far each lane is published.
SET LOCAL lock_timeout = '5s';

CREATE TABLE relay_lanes (
    lane              smallint    CONSTRAINT relay_lanes_pkey PRIMARY KEY
        CONSTRAINT relay_lanes_lane_check CHECK (lane BETWEEN 0 AND 15),
    owner             text,
    token             bigint      NOT NULL DEFAULT 0,
    expires_at        timestamptz NOT NULL DEFAULT '-infinity',
    position          bigint      NOT NULL DEFAULT 0,
    seen              pg_snapshot,
    system_identifier bigint,
    settled_at        timestamptz,
    -- Without a snapshot nothing can be known of late rows, so nothing may have been handed out yet.
    CONSTRAINT relay_lanes_seen_check CHECK (seen IS NOT NULL OR position = 0)
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

COMMENT ON TABLE relay_lanes IS 'One row a lane: its lease, and its cursor (position, seen).';
COMMENT ON COLUMN relay_lanes.lane IS 'outbox.lane.';
COMMENT ON COLUMN relay_lanes.owner IS 'The relay that holds the lease; null when given back.';
COMMENT ON COLUMN relay_lanes.token IS 'Raised by every take-over: a former owner''s writes no longer hit the row.';
COMMENT ON COLUMN relay_lanes.expires_at IS 'End of the lease by the database''s clock; then any relay may take the lane.';
COMMENT ON COLUMN relay_lanes.position IS 'Highest outbox id up to which rows visible in "seen" are acknowledged by Kafka.';
COMMENT ON COLUMN relay_lanes.seen IS 'Snapshot of the read that reached "position": a row at or below it whose transaction was not visible then is late and yet to come.';
COMMENT ON COLUMN relay_lanes.system_identifier IS 'The Postgres cluster whose transaction ids "seen" speaks of. In another one (dump and restore) the relay refuses to start until relay_reanchor() was called.';
COMMENT ON COLUMN relay_lanes.settled_at IS 'When the cursor was last written.';

INSERT INTO relay_lanes (lane) SELECT generate_series(0, 15);

CREATE TABLE relay_members (
    relay      text        CONSTRAINT relay_members_pkey PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE relay_members IS 'Running relays, so that each knows its fair share of the lanes, also before it holds one.';
COMMENT ON COLUMN relay_members.relay IS 'relay_lanes.owner.';
COMMENT ON COLUMN relay_members.expires_at IS 'Renewed with the leases; later than that the relay counts no more.';

CREATE TABLE relay_parked (
    id                bigint      CONSTRAINT relay_parked_pkey PRIMARY KEY,
    lane              smallint    NOT NULL,
    event_id          uuid        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    type              text        NOT NULL,
    payload           json        NOT NULL,
    headers           jsonb       NOT NULL,
    occurred_at       timestamptz NOT NULL,
    reason            text,
    parked_at         timestamptz NOT NULL DEFAULT now()
);
-- A relay that takes a lane asks which keys of it are parked.
CREATE INDEX relay_parked_key_idx ON relay_parked (lane, aggregate_type, aggregate_id, id);

COMMENT ON TABLE relay_parked IS 'Events that Kafka refuses for good, and all later ones of the same key, in order: they wait here while everything else flows.';
COMMENT ON COLUMN relay_parked.id IS 'outbox.id; a copy, since the partition may be dropped while the event waits.';
COMMENT ON COLUMN relay_parked.lane IS 'outbox.lane.';
COMMENT ON COLUMN relay_parked.event_id IS 'outbox.event_id.';
COMMENT ON COLUMN relay_parked.aggregate_type IS 'outbox.aggregate_type.';
COMMENT ON COLUMN relay_parked.aggregate_id IS 'outbox.aggregate_id.';
COMMENT ON COLUMN relay_parked.aggregate_version IS 'outbox.aggregate_version.';
COMMENT ON COLUMN relay_parked.type IS 'outbox.type.';
COMMENT ON COLUMN relay_parked.payload IS 'outbox.payload.';
COMMENT ON COLUMN relay_parked.headers IS 'outbox.headers.';
COMMENT ON COLUMN relay_parked.occurred_at IS 'outbox.occurred_at.';
COMMENT ON COLUMN relay_parked.reason IS 'Why Kafka refuses it; null for a later event of a key that is parked already.';
COMMENT ON COLUMN relay_parked.parked_at IS 'When it was parked.';

-- Makes the cursors speak of this Postgres cluster after a dump and restore, when transaction ids have started again: rows the relays
-- are done with get transaction id 0, and those that were late and still to come get that of this call. Call it once, while
-- neither writers nor relays run; it rewrites what is retained of the outbox.
CREATE FUNCTION relay_reanchor() RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
DECLARE
    own bigint := pg_current_xact_id()::text::bigint;
BEGIN
    LOCK TABLE outbox, relay_lanes IN SHARE ROW EXCLUSIVE MODE;
    UPDATE outbox o
        SET txid = CASE
            WHEN o.id <= l.position AND NOT pg_visible_in_snapshot(o.txid::text::xid8, l.seen) THEN own
            ELSE 0
        END
        FROM relay_lanes l
        WHERE l.lane = o.lane;
    -- A snapshot that ends just before this transaction: it sees all other rows, and only those of `own` are late to it.
    UPDATE relay_lanes
        SET seen = CASE WHEN position > 0 THEN format('%s:%s:', own, own)::pg_snapshot END,
            system_identifier = NULL, owner = NULL, expires_at = '-infinity', token = token + 1;
END $$;
COMMENT ON FUNCTION relay_reanchor IS 'After a dump and restore into another Postgres cluster: makes the relays'' cursors fit its transaction ids. Only while neither writers nor relays run.';
REVOKE EXECUTE ON FUNCTION relay_reanchor FROM PUBLIC;
