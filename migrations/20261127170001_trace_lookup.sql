-- `outrider trace` asks of one order which traces its events are part of.
SET LOCAL lock_timeout = '5s';

GRANT EXECUTE ON FUNCTION order_timeline TO outrider_operator;
