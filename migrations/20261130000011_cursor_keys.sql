-- Keys that the API signs positions in its event streams with, so that no client can make one up.
SET LOCAL lock_timeout = '5s';

CREATE TABLE cursor_keys (
    id         bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT cursor_keys_pkey PRIMARY KEY,
    secret     bytea       NOT NULL CONSTRAINT cursor_keys_secret_check CHECK (octet_length(secret) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cursor_keys IS 'Keys that the API signs the ids of its streams'' events with. The API makes a new one each month, and deletes it two months later.';
COMMENT ON COLUMN cursor_keys.id IS 'Identity; part of each id that is signed with it.';
COMMENT ON COLUMN cursor_keys.secret IS '256 random bits. With them, positions can be made up, and cost Postgres time; they open no door.';
COMMENT ON COLUMN cursor_keys.created_at IS 'When.';

GRANT SELECT, INSERT, DELETE ON cursor_keys TO outrider_api;
