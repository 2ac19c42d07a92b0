-- Watching orders: the api reads the events of the outbox, over the indexes that are there for the relays.
SET LOCAL lock_timeout = '5s';

GRANT SELECT ON outbox, outbox_partitions TO outrider_api;
