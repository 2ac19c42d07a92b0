-- The services write what an event is, and leave id and txid to Postgres: a row with another transaction's number could be passed by.
SET LOCAL lock_timeout = '5s';

REVOKE INSERT ON outbox FROM outrider_api, outrider_processor;
GRANT INSERT (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
    ON outbox TO outrider_api, outrider_processor;
