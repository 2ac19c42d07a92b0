-- What the outbox takes is bounded, so that each row of it can be read, published, or set aside when Kafka refuses it.
--
-- NOT VALID: the upgrade neither reads nor refuses rows that are there already. Postgres checks new rows, and rows that are updated. A
-- later partition has the same constraints, since it is made LIKE outbox. Each bound is a constraint with a name of its own, which
-- Postgres gives with its error (23514).
SET LOCAL lock_timeout = '5s';

-- The limit of headers is on their text. To turn them into text costs a tenth of an insert, so that is done for large ones only. 256 bytes
-- of jsonb come to 1.5 kB of text, where every character has to be escaped. Two things escape: numbers with huge exponents, of
-- which 20 fit, with 147 kB of text each; and compressed values from another table, which come to 64 kB. A relay can read those.
ALTER TABLE outbox
    ADD CONSTRAINT outbox_aggregate_type_bytes CHECK (octet_length(aggregate_type) BETWEEN 1 AND 200) NOT VALID,
    ADD CONSTRAINT outbox_aggregate_id_bytes CHECK (octet_length(aggregate_id) BETWEEN 1 AND 1000) NOT VALID,
    ADD CONSTRAINT outbox_type_bytes CHECK (octet_length(type) BETWEEN 1 AND 250) NOT VALID,
    ADD CONSTRAINT outbox_payload_bytes CHECK (payload_bytes <= 16777216) NOT VALID,
    ADD CONSTRAINT outbox_headers_bytes
        CHECK (CASE WHEN pg_column_size(headers) > 256 THEN octet_length(headers::text) <= 32768 ELSE true END) NOT VALID,
    -- Infinity is outside of it too.
    ADD CONSTRAINT outbox_occurred_at_years
        CHECK (occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00') NOT VALID;

-- Its primary key is an index on this text, which takes no more than 2,700 bytes.
ALTER TABLE relay_routes
    ADD CONSTRAINT relay_routes_aggregate_type_bytes CHECK (octet_length(aggregate_type) BETWEEN 1 AND 200) NOT VALID;
