-- API keys: who may call the API, and who has made, replaced or revoked which key.
SET LOCAL lock_timeout = '5s';

-- The secret is 256 random bits. A slow hash protects secrets that can be guessed; nobody guesses these, and one SHA-256 a request
-- is cheap. A copy of this table lets nobody in.
CREATE TABLE api_keys (
    id           text        CONSTRAINT api_keys_pkey PRIMARY KEY CONSTRAINT api_keys_id_check CHECK (id ~ '^[0-9a-f]{16}$'),
    caller_id    text        NOT NULL CONSTRAINT api_keys_caller_id_check CHECK (caller_id ~ '^[0-9a-f]{16}$'),
    secret_hash  bytea       NOT NULL CONSTRAINT api_keys_secret_hash_check CHECK (octet_length(secret_hash) = 32),
    name         text        NOT NULL CONSTRAINT api_keys_name_check CHECK (trim(name) <> '' AND char_length(name) <= 100),
    scopes       text[]      NOT NULL CONSTRAINT api_keys_scopes_check
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['orders:read', 'orders:write']),
    user_id      bigint      CONSTRAINT api_keys_user_id_check CHECK (user_id >= 1),
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text        NOT NULL,
    expires_at   timestamptz CONSTRAINT api_keys_expires_at_check CHECK (expires_at >= created_at),
    revoked_at   timestamptz CONSTRAINT api_keys_revoked_at_check CHECK (revoked_at >= created_at),
    replaced_by  text        CONSTRAINT api_keys_replaced_by_fkey REFERENCES api_keys (id)
        CONSTRAINT api_keys_replaced_by_check CHECK (replaced_by <> id),
    last_used_at timestamptz
);
COMMENT ON TABLE api_keys IS 'Keys of callers of the API. Rows stay: a key that is revoked or has expired is still known by name.';
COMMENT ON COLUMN api_keys.id IS 'The part of the key that is no secret: 16 hexadecimal digits.';
COMMENT ON COLUMN api_keys.caller_id IS 'Who calls: the id of the first key that this one has come from by rotation. What belongs to a caller, such as its idempotency keys, stays its own over a rotation.';
COMMENT ON COLUMN api_keys.secret_hash IS 'SHA-256 of the secret, which is kept nowhere.';
COMMENT ON COLUMN api_keys.name IS 'What people call it.';
COMMENT ON COLUMN api_keys.scopes IS 'What may be done with it: orders:read, orders:write.';
COMMENT ON COLUMN api_keys.user_id IS 'orders.user_id of the orders that may be seen and changed with it; null: those of all users.';
COMMENT ON COLUMN api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN api_keys.created_by IS 'Who has made it: api_key_log.db_user and os_user.';
COMMENT ON COLUMN api_keys.expires_at IS 'From when on it is refused; null: never.';
COMMENT ON COLUMN api_keys.revoked_at IS 'When it was revoked.';
COMMENT ON COLUMN api_keys.replaced_by IS 'The key that has taken its place by rotation.';
COMMENT ON COLUMN api_keys.last_used_at IS 'When it was last used, to a minute or so; null: never.';

CREATE TABLE api_key_log (
    id          bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT api_key_log_pkey PRIMARY KEY,
    logged_at   timestamptz NOT NULL DEFAULT now(),
    action      text        NOT NULL CONSTRAINT api_key_log_action_check CHECK (action IN ('create', 'revoke', 'rotate')),
    api_key_id  text        NOT NULL,
    replaced_by text,
    db_user     text        NOT NULL DEFAULT session_user,
    os_user     text        NOT NULL,
    why         text,
    CONSTRAINT api_key_log_revoke_check CHECK (action <> 'revoke' OR (why IS NOT NULL AND trim(why) <> '')),
    CONSTRAINT api_key_log_rotate_check CHECK ((action = 'rotate') = (replaced_by IS NOT NULL))
);
COMMENT ON TABLE api_key_log IS 'Append-only: each making, revoking and rotating of an API key.';
COMMENT ON COLUMN api_key_log.id IS 'Identity.';
COMMENT ON COLUMN api_key_log.logged_at IS 'When.';
COMMENT ON COLUMN api_key_log.action IS 'create, revoke or rotate.';
COMMENT ON COLUMN api_key_log.api_key_id IS 'api_keys.id.';
COMMENT ON COLUMN api_key_log.replaced_by IS 'The key that a rotation has made.';
COMMENT ON COLUMN api_key_log.db_user IS 'Who was logged in to Postgres.';
COMMENT ON COLUMN api_key_log.os_user IS 'Who ran the command.';
COMMENT ON COLUMN api_key_log.why IS 'Why, in that person''s words.';

CREATE FUNCTION api_key_log_keep() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'api_key_log is append-only' USING ERRCODE = 'feature_not_supported';
END $$;
COMMENT ON FUNCTION api_key_log_keep IS 'Refuses to change or delete what api_key_log holds.';
CREATE TRIGGER api_key_log_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON api_key_log
    EXECUTE FUNCTION api_key_log_keep();

-- The API reads keys and says when they were used: it can let nobody in. Operators make and end keys, and see no hash.
GRANT SELECT, UPDATE (last_used_at) ON api_keys TO outrider_api;
GRANT SELECT (id, caller_id, name, scopes, user_id, created_at, created_by, expires_at, revoked_at, replaced_by, last_used_at),
    INSERT, UPDATE (expires_at, revoked_at, replaced_by) ON api_keys TO outrider_operator;
GRANT SELECT, INSERT ON api_key_log TO outrider_operator;
