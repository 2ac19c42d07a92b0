-- The relay's way to rows that committed late, now bounded from above as well.
--
-- Late rows are those of recent transactions at or below a position. By transaction alone, two reads walk over rows that are not
-- late: the one after a bulk transaction, and the first one of a relay that has a deep backlog before it. With the id in the index
-- those are left out without a look at the table: of a transaction of a million rows, a read took 1.1 s and takes 0.1 ms.
SET LOCAL lock_timeout = '5s';

CREATE INDEX outbox_txid_id_idx ON outbox (txid, id);
DROP INDEX outbox_txid_idx;
