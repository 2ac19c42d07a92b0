-- Makes a login for each service and one for operators, each a member of just the group role that the migrations made for it, and sets their
-- passwords. For psql, as a superuser, after `outrider migrate`; it may be run again at any time. The passwords are the files api, relay,
-- processor and operator in the folder OUTRIDER_SECRETS, or else /run/secrets.
\set ON_ERROR_STOP on
\set QUIET on
-- Without the statement that failed: it may hold a password.
\set VERBOSITY terse

-- For the same reason nothing of this session is logged, or shown in pg_stat_activity.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET log_min_duration_sample = -1;
SET log_duration = off;
SET track_activities = off;
SET password_encryption = 'scram-sha-256';

\set api `cat "${OUTRIDER_SECRETS:-/run/secrets}/api"`
\set relay `cat "${OUTRIDER_SECRETS:-/run/secrets}/relay"`
\set processor `cat "${OUTRIDER_SECRETS:-/run/secrets}/processor"`
\set operator `cat "${OUTRIDER_SECRETS:-/run/secrets}/operator"`

BEGIN;
CREATE TEMPORARY TABLE login ON COMMIT DROP AS
SELECT name, name || '_login' AS login, 'outrider_' || name AS role, password
FROM (VALUES ('api', :'api'), ('relay', :'relay'), ('processor', :'processor'), ('operator', :'operator')) AS given (name, password);

SELECT format('DO $do$ BEGIN RAISE EXCEPTION %L; END $do$',
    'the secret ' || name || ' is missing or shorter than 16 characters: run sh deploy/secrets.sh')
FROM login WHERE length(password) < 16
\gexec

SELECT format('CREATE ROLE %I', login) FROM login WHERE login NOT IN (SELECT rolname FROM pg_roles)
\gexec

SELECT format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT PASSWORD %L', login, password)
FROM login
\gexec

-- SET ROLE leads nowhere else.
SELECT format('REVOKE %I FROM %I', g.rolname, l.login)
FROM login l
    JOIN pg_roles r ON r.rolname = l.login
    JOIN pg_auth_members m ON m.member = r.oid
    JOIN pg_roles g ON g.oid = m.roleid
WHERE g.rolname <> l.role
\gexec

SELECT format('GRANT %I TO %I', role, login) FROM login
\gexec
COMMIT;
