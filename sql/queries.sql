-- Named queries. A block starts with "-- name:"; the line after it says what it is for.

-- name: owner_user_id
-- Whose images these are: the UUID for supabase.owner_user_id.
select id from auth.users where email = 'you@example.com';

-- name: migrations_lock
-- One imagen-migrate at a time in a database; let go when the transaction ends, poolers or not.
select pg_advisory_xact_lock(4920817, 1);

-- name: migrations_there
-- Whether the table of applied migrations is there.
select to_regclass('imagen.migrations') is not null;

-- name: migrations_table
-- What was applied; for whoever migrates only.
create schema if not exists imagen;
create table if not exists imagen.migrations (
  name text primary key,
  sha256 text not null,
  applied_at timestamptz not null default now()
);
alter table imagen.migrations enable row level security;

-- name: migrations_applied
-- Every applied migration: name, sha256, when.
select name, sha256, applied_at from imagen.migrations order by name;

-- name: migrations_record
-- Note one as applied.
insert into imagen.migrations (name, sha256) values (%s, %s);

-- name: missing_roles
-- The roles that the migrations grant to, and that are not there.
select name from unnest(array['anon', 'authenticated', 'service_role', 'authenticator']) as name
where to_regrole(name) is null;

-- name: foreign_schemas
-- The schemas auth and storage where they are another's than our bootstrap's.
select nspname from pg_namespace
where nspname in ('auth', 'storage')
  and obj_description(oid, 'pg_namespace') is distinct from 'made by imagen-migrate --bootstrap';

-- name: whoami
-- Who is connected, whether that is a superuser, and the server's version as a number.
select current_user, rolsuper, current_setting('server_version_num')::int
from pg_roles where rolname = current_user;
