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
COMMENT ON COLUMN relay_lanes.system_identifier IS 'The Postgres cluster whose transaction ids "seen" speaks of; in another one (dump and restore) the relay refuses to start.';
COMMENT ON COLUMN relay_lanes.settled_at IS 'When the cursor was last written.';

INSERT INTO relay_lanes (lane) SELECT generate_series(0, 15);

CREATE TABLE relay_members (
    relay      text        CONSTRAINT relay_members_pkey PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE relay_members IS 'Running relays, so that each knows its fair share of the lanes, also before it holds one.';
COMMENT ON COLUMN relay_members.relay IS 'relay_lanes.owner.';
COMMENT ON COLUMN relay_members.expires_at IS 'Renewed with the leases; later than that the relay counts no more.';
