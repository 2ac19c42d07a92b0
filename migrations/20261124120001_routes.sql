-- Where the events of each aggregate type go, when that is not the topic of the default rule.
SET LOCAL lock_timeout = '5s';

CREATE TABLE relay_routes (
    aggregate_type text NOT NULL CONSTRAINT relay_routes_pkey PRIMARY KEY,
    topic          text NOT NULL,
    -- Kafka's rule for names (org.apache.kafka.common.internals.Topic). The route of all other types has one "*" in its topic, which
    -- stands for the type.
    CONSTRAINT relay_routes_topic_check CHECK (
        CASE
            WHEN aggregate_type = '*' THEN topic ~ '^[A-Za-z0-9._-]*[*][A-Za-z0-9._-]*$' AND length(topic) <= 249
            ELSE topic ~ '^[A-Za-z0-9._-]{1,249}$' AND topic NOT IN ('.', '..')
        END)
);
COMMENT ON TABLE relay_routes IS 'Topics by aggregate type. A type without a row goes to the topic of the row "*", or else to its own name and an "s". RELAY_ROUTES wins over this table. A running relay reads it again within a quarter of RELAY_LEASE_MS; events published from then on go to the new topic, so a change parts a key''s events between two topics.';
COMMENT ON COLUMN relay_routes.aggregate_type IS 'outbox.aggregate_type, or "*" for all types that have no route of their own.';
COMMENT ON COLUMN relay_routes.topic IS 'A legal topic name; in the row "*" with one "*" that stands for the aggregate type, for example "outbox.event.*".';

GRANT SELECT ON relay_routes TO outrider_relay;
