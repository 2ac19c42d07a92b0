-- The length of each payload beside it, so that a relay knows how large a row is before it reads it. Of a payload that Postgres has
-- compressed, nothing else tells its length without unpacking it. Rewrites what is retained of the outbox.
SET LOCAL lock_timeout = '5s';

ALTER TABLE outbox ADD COLUMN payload_bytes integer NOT NULL GENERATED ALWAYS AS (octet_length(payload::text)) STORED;
COMMENT ON COLUMN outbox.payload_bytes IS 'Length of payload in bytes. A relay reads a large payload by itself, and one that is too large not at all.';

