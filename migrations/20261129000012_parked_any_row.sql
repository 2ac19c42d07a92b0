-- Any row of the outbox can be parked, however large its parts are and whatever its time is.
--
-- An index entry takes no more than 2,700 bytes, so keys are in the indexes by a hash. A payload that is larger than the outbox takes today
-- stays in the outbox: the parked row has its length only, and the partition of the row is kept.
SET LOCAL lock_timeout = '5s';

-- The length of the type tells where the id begins, so two keys are never the same text: 'a/b' and 'c' are not 'a' and 'b/c'. Two hashes of
-- 64 bits under seeds that nothing else uses; not MD5, which a Postgres in FIPS mode refuses.
CREATE FUNCTION relay_key_hash(aggregate_type text, aggregate_id text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
AS $$
    SELECT (lpad(to_hex(hashtextextended(octet_length(aggregate_type)::text || ':' || aggregate_type || aggregate_id, 1)), 16, '0')
        || lpad(to_hex(hashtextextended(octet_length(aggregate_type)::text || ':' || aggregate_type || aggregate_id, 2)), 16, '0'))::uuid
$$;
COMMENT ON FUNCTION relay_key_hash IS 'Hash of a key, for indexes: 128 bits of aggregate type and id. Look for a key by its lane, this, and both texts.';
-- Relays and operators call it, whatever default privileges an administrator has set.
GRANT EXECUTE ON FUNCTION relay_key_hash TO PUBLIC;

ALTER TABLE relay_parked
    ADD COLUMN key_hash uuid NOT NULL GENERATED ALWAYS AS (relay_key_hash(aggregate_type, aggregate_id)) STORED,
    ADD COLUMN payload_bytes integer,
    ALTER COLUMN payload DROP NOT NULL;
COMMENT ON COLUMN relay_parked.key_hash IS 'relay_key_hash of aggregate_type and aggregate_id.';
COMMENT ON COLUMN relay_parked.payload IS 'outbox.payload; null: it is too large and stays in the outbox. Such an event cannot be published, only discarded.';
COMMENT ON COLUMN relay_parked.payload_bytes IS 'outbox.payload_bytes; null: parked by a relay that did not know of it.';
COMMENT ON COLUMN relay_parked.headers IS 'outbox.headers; empty where these or the payload are too large.';
COMMENT ON COLUMN relay_parked.reason IS 'Why Kafka refuses it, in 1,000 characters at most; null for a later event of a key that is parked already.';

DROP INDEX relay_parked_key_idx;
-- A relay that takes a lane asks which keys of it are parked, and a retry reads a key in the order of its ids.
CREATE INDEX relay_parked_key_idx ON relay_parked (lane, key_hash, id);
-- Retention asks for rows that are still needed in the outbox.
CREATE INDEX relay_parked_reference_idx ON relay_parked (id) WHERE payload IS NULL;

ALTER TABLE relay_parked_requests
    ADD COLUMN key_hash uuid NOT NULL GENERATED ALWAYS AS (relay_key_hash(aggregate_type, aggregate_id)) STORED,
    DROP CONSTRAINT relay_parked_requests_pkey,
    ADD CONSTRAINT relay_parked_requests_pkey PRIMARY KEY (lane, key_hash);
COMMENT ON COLUMN relay_parked_requests.key_hash IS 'relay_parked.key_hash.';
