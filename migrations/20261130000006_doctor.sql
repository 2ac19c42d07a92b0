-- `outrider doctor` looks at what the relays look at when they begin.
SET LOCAL lock_timeout = '5s';

GRANT EXECUTE ON FUNCTION outbox_foreign_row TO outrider_operator;
