-- Stand-ins for what a Supabase project already has: roles, auth, storage, PostgREST's settings.
-- For a plain PostgreSQL 15 to 18: `imagen-migrate --bootstrap` runs this before the migrations, as a
-- superuser, in one transaction. It may run again. It never runs where auth or storage is another's.
--
-- Roles belong to the whole server, the rest to one database. The login roles get no password here:
-- `alter role authenticator password '…'` before PostgREST can log in over TCP.

do $roles$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('anon',                   'nologin noinherit'),
      ('authenticated',          'nologin noinherit'),
      ('service_role',           'nologin noinherit bypassrls'),
      ('authenticator',          'login noinherit'),
      ('supabase_auth_admin',    'nologin noinherit'),
      ('supabase_storage_admin', 'nologin noinherit'),
      ('migrator',               'login inherit createrole bypassrls')  -- for Supabase's "postgres": no superuser
    ) as roles (name, options)
  loop
    if to_regrole(wanted.name) is null then
      execute format('create role %I %s', wanted.name, wanted.options);
    end if;
  end loop;
  execute format('grant create, connect, temporary on database %I to migrator', current_database());
end
$roles$;

grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to migrator;
grant authenticator to migrator with admin option;  -- PostgreSQL 16+: needed to alter it
grant usage on schema public to anon, authenticated, service_role;
grant usage, create on schema public to migrator;
alter role authenticator set statement_timeout = '8s';
alter role authenticated set statement_timeout = '8s';
alter role anon set statement_timeout = '3s';

-- auth: whose token a request carries, as PostgREST hands it on

create schema if not exists auth authorization supabase_auth_admin;
comment on schema auth is 'made by imagen-migrate --bootstrap';
grant usage on schema auth to anon, authenticated, service_role, migrator;

create table if not exists auth.users (
  id uuid primary key default gen_random_uuid(),
  email text unique,
  created_at timestamptz not null default now()
);
alter table auth.users owner to supabase_auth_admin;
alter table auth.users enable row level security;
grant select, references on auth.users to migrator;
grant all on auth.users to service_role;

create or replace function auth.jwt() returns jsonb language sql stable as
  $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
create or replace function auth.uid() returns uuid language sql stable as
  $$ select (auth.jwt() ->> 'sub')::uuid $$;
create or replace function auth.role() returns text language sql stable as
  $$ select auth.jwt() ->> 'role' $$;

-- storage: the columns that a policy or a migration may name; the real service has more

create schema if not exists storage authorization supabase_storage_admin;
comment on schema storage is 'made by imagen-migrate --bootstrap';
grant usage on schema storage to anon, authenticated, service_role, migrator;

create table if not exists storage.buckets (
  id text primary key,
  name text not null unique,
  owner_id text,
  public boolean default false,
  file_size_limit bigint,
  allowed_mime_types text[],
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create table if not exists storage.objects (
  id uuid primary key default gen_random_uuid(),
  bucket_id text references storage.buckets (id),
  name text,
  owner_id text,
  metadata jsonb,
  user_metadata jsonb,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  last_accessed_at timestamptz default now(),
  unique (bucket_id, name)
);
alter table storage.buckets owner to supabase_storage_admin;
alter table storage.objects owner to supabase_storage_admin;
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role, migrator;
-- only a table's owner makes policies on it; Supabase lets its "postgres" do so by other means
grant supabase_storage_admin to migrator;

-- PostgREST reads these settings of the role it logs in as

do $settings$
begin
  if not exists (
    select from pg_db_role_setting, unnest(setconfig) as setting
    where setrole = 'authenticator'::regrole and setdatabase = 0 and setting like 'pgrst.db\_schemas=%'
  ) then
    alter role authenticator set pgrst.db_schemas = 'public';
  end if;
end
$settings$;
-- PostgreSQL 15+ asks for this of who is no superuser
grant set on parameter "pgrst.db_schemas" to migrator;
