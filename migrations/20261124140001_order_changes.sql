-- Cancelling, deleting and listing orders.
SET LOCAL lock_timeout = '5s';

ALTER TABLE orders ADD COLUMN deleted_at timestamptz;
COMMENT ON COLUMN orders.deleted_at IS 'When it was deleted: the row stays for the history and is in no answer; null before.';

-- A list goes from the newest order to the oldest, of all, of a user or of a product. None of these columns changes while an order
-- lives, so that moving it on stays a HOT update; a status in an index would end that.
CREATE INDEX orders_created_idx ON orders (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_user_idx ON orders (user_id, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX orders_product_idx ON orders (product_id, created_at, id) WHERE deleted_at IS NULL;
-- The few that ended badly are found among all by their history, which is only appended to.
CREATE INDEX order_transitions_ended_idx ON order_transitions (to_status, order_id) WHERE to_status IN ('Failed', 'Cancelled');

ALTER TABLE order_transitions DROP CONSTRAINT order_transitions_legal_check;
ALTER TABLE order_transitions ADD CONSTRAINT order_transitions_legal_check CHECK (
    CASE
        WHEN from_status IS NULL THEN to_status = 'Pending' AND version = 1
        WHEN to_status = 'Deleted' THEN from_status IN ('Pending', 'Processed', 'Failed', 'Cancelled')
        WHEN from_status = 'Pending' THEN to_status IN ('Processed', 'Failed', 'Cancelled')
        WHEN from_status = 'Failed' THEN to_status = 'Processed'
        ELSE false
    END);
COMMENT ON COLUMN order_transitions.to_status IS 'Status after; Deleted for the deletion, which leaves the status of the order as it is.';

GRANT UPDATE (status, version, updated_at, deleted_at) ON orders TO outrider_api;
GRANT SELECT ON order_transitions TO outrider_api;
