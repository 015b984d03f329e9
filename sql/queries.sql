-- Named queries. A block starts with "-- name:"; the line after it says what it is for. A line with
-- :NAME alone stands for the block of that name.

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

-- name: missing_rights
-- What the migrations need and this role may not do, in words.
select what from (values
  ('create schemas in this database', has_database_privilege(current_database(), 'CREATE')),
  ('insert into and update storage.buckets',
    has_table_privilege(to_regclass('storage.buckets'), 'INSERT')
    and has_table_privilege(to_regclass('storage.buckets'), 'UPDATE')),
  ('make policies on storage.objects, as a member of its owner', (
    select pg_has_role(relowner, 'MEMBER') from pg_class
    where oid = to_regclass('storage.objects'))),
  ('alter the role authenticator', (
    select rolsuper or pg_has_role('authenticator', 'MEMBER WITH ADMIN OPTION')
      or (rolcreaterole and current_setting('server_version_num')::int < 160000)
    from pg_roles where rolname = current_user)),
  ('set the parameter pgrst.db_schemas', has_parameter_privilege('pgrst.db_schemas', 'SET'))
) as needed (what, may) where not coalesce(may, false);

-- name: columns_there
-- Those of these columns that a table has: name, type, and whether it is the type that is meant.
select attname, format_type(atttypid, atttypmod), atttypid = to_regtype(kind)::oid
from unnest(%s::text[], %s::text[]) as wanted (name, kind)
join pg_attribute on attname = wanted.name and attnum > 0 and not attisdropped
where attrelid = to_regclass(%s);

-- name: foreign_schemas
-- The schemas auth and storage where they are another's than our bootstrap's.
select nspname from pg_namespace
where nspname in ('auth', 'storage')
  and obj_description(oid, 'pg_namespace') is distinct from 'made by imagen-migrate --bootstrap';

-- name: whoami
-- Who is connected, whether that is a superuser, and the server's version as a number.
select current_user, rolsuper, current_setting('server_version_num')::int
from pg_roles where rolname = current_user;

-- name: notify
-- Say something to who listens.
select pg_notify(%s, %s);

-- name: job_columns
-- Fails where a migration that workers need was not applied: the server names the column.
select released_at, record from imagen.jobs limit 0;

-- name: job_claim
-- One job that is due, for who asks. A first claim need not be on disk before it is used: job_intend
-- is, and with it the claim. The fence is raised by the clock too, so that a claim which a crash of
-- the server forgot never has the fence of the next one.
update imagen.jobs set
  status = 'running', worker = %s, lease = now() + interval '10 s', started_at = now(),
  claims = claims + 1,
  fence = greatest(fence + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
where id = any (array(
  select id from imagen.jobs
  where status = 'pending' and run_after <= now()
    and (%s::text[] is null or coalesce(backend, %s) = any (%s::text[]))
  order by priority desc, run_after, id
  limit 1
  for update skip locked
))
returning id::text, fence, attempts, max_attempts, claims, owner_user_id::text, prompt, backend,
  params::text, request::text,
  -- each by itself: before PostgreSQL 17 a time that is infinite cannot be subtracted
  (extract(epoch from now()) - extract(epoch from intended_at))::float8,
  (extract(epoch from now()) - extract(epoch from released_at))::float8,
  case when request is null then set_config('synchronous_commit', 'off', true) end;

-- name: job_next
-- One is made, and who made it takes the next, in one round trip. Where the claim need not be on disk
-- this need not either: job_intend, which is sent at once, brings both there. What a crash of the
-- server forgets before that is a job that ran and was not answered: it is asked for again.
with made as (
  update imagen.jobs set
    status = 'done', attempts = attempts + 1, claims = 0, lease = null, finished_at = now(),
    image_id = coalesce(%s::uuid, image_id), record = %s::jsonb, error = null,
    error_detail = null
  where id = %s and fence = %s and status = 'running'
  returning 1
), claimed as (
  :job_claim
)
select exists (select from made), claimed.* from (values (1)) as always left join claimed on true;

-- name: job_intend
-- Keep the line that is about to be sent, and since when it may have been; the first one stays.
update imagen.jobs
set request = coalesce(request, %s::jsonb), intended_at = coalesce(intended_at, now())
where id = %s and fence = %s and status = 'running'
returning 1;

-- name: job_renew
-- Ten more seconds for what is still ours.
update imagen.jobs set lease = now() + interval '10 s'
from unnest(%s::uuid[], %s::bigint[]) as held (id, fence)
where jobs.id = held.id and jobs.fence = held.fence and jobs.worker = %s
  and jobs.status = 'running'
returning jobs.id::text;

-- name: job_cancelled
-- Which of these were cancelled under us.
select jobs.id::text
from imagen.jobs join unnest(%s::uuid[], %s::bigint[]) as held (id, fence)
  on jobs.id = held.id and jobs.fence = held.fence
where jobs.status = 'cancelled';

-- name: job_leave
-- Whoever holds a job lets go of it, with an answer or without; said twice it is done once. Given
-- back without an answer for the fifth time, it is given up as by job_rescue. Where what was sent may
-- still be on its way, claims are counted anew but one stays: so released_at is set, and nobody takes
-- "the provider does not list it" for proof too soon.
with said as (
  select %s::uuid as id, %s::bigint as fence, %s as status, %s::int as attempt,
    %s::boolean as answered, %s::boolean as under_way, %s::float8 as after_s,
    %s::uuid as image_id, %s as error, %s::jsonb as detail, %s::jsonb as record
), judged as (
  select jobs.id, (not said.answered and jobs.claims >= 5) as poisonous
  from imagen.jobs join said using (id, fence)
  where jobs.status = 'running'
), left_now as (
  update imagen.jobs set
    status = case when poisonous then 'failed' else said.status end,
    attempts = jobs.attempts + said.attempt,
    claims = case when said.under_way then 1 when said.answered then 0 else jobs.claims end,
    run_after = case when said.after_s > 0 then now() + said.after_s * interval '1 s'
      else jobs.run_after end,
    lease = null,
    finished_at = case when poisonous or said.status <> 'pending' then now() end,
    image_id = coalesce(said.image_id, jobs.image_id),
    record = said.record,
    error = case when said.status = 'done' then null
      when said.answered or poisonous then coalesce(said.error, jobs.error) else jobs.error end,
    error_detail = case when said.status = 'done' then null
      when poisonous or said.answered and said.error is not null then said.detail
      else jobs.error_detail end
  from said, judged
  where jobs.id = judged.id and jobs.fence = said.fence and jobs.status = 'running'
  returning 1
)
select exists (select from left_now) or exists (
  select from imagen.jobs join said using (id, fence)
  where jobs.status = said.status or (not said.answered and jobs.status = 'failed')
);

-- name: job_rescue
-- Jobs whose worker is gone are anybody's again; who costs five workers is given up.
update imagen.jobs set
  status = case when claims >= 5 then 'failed' else 'pending' end,
  finished_at = case when claims >= 5 then now() end,
  lease = null,
  error = case when claims >= 5 then %s else error end,
  error_detail = case when claims >= 5 then %s::jsonb else error_detail end
where id = any (array(
  select id from imagen.jobs
  where status = 'running'
    and (lease < now() - %s * interval '1 s' or worker = %s)
  for update skip locked
))
returning id::text;

-- name: job_name_lock
-- Nobody else works under this name as long as this connection lives; when its other end is dead
-- without having said so, the server notices within 40 s.
select pg_try_advisory_lock(4920818, %s), set_config('tcp_keepalives_idle', '20', false),
  set_config('tcp_keepalives_interval', '5', false),
  set_config('tcp_keepalives_count', '4', false),
  set_config('tcp_user_timeout', '40000', false);

-- name: notifications_drained
-- Let go of what all listeners have heard; how full the queue of notifications is, from 0 to 1.
select pg_notification_queue_usage();

-- name: job_waiting
-- Seconds until a job is due that who asks may claim; less than 0 when one was before. A job whose
-- run_after is infinity is parked.
select (extract(epoch from min(run_after)) - extract(epoch from now()))::float8
from imagen.jobs
where status = 'pending' and (%s::text[] is null or coalesce(backend, %s) = any (%s::text[]));

-- name: job_counts
-- What is queued, due, running and stuck.
select
  (select count(*) from imagen.jobs where status = 'pending'),
  (select count(*) from imagen.jobs where status = 'pending' and run_after <= now()),
  (select count(*) from imagen.jobs where status = 'running'),
  (select count(*) from imagen.jobs where status = 'running' and lease < now());

-- name: job_enqueue
-- New jobs; those that are there stay as they are.
insert into imagen.jobs (id, owner_user_id, prompt, backend, params, priority)
select id, owner_user_id, prompt, backend, coalesce(params, '{}'), coalesce(priority, 0)
from jsonb_to_recordset(%s::jsonb)
  as job (id uuid, owner_user_id uuid, prompt text, backend text, params jsonb, priority int)
on conflict (id) do nothing
returning id::text;

-- name: job_cancel
-- Cancel what is not over yet.
update imagen.jobs set status = 'cancelled', finished_at = now(), lease = null
where id = any (%s::uuid[]) and status in ('pending', 'running')
returning id::text, status, left(prompt, 200);

-- name: job_again
-- What failed or was cancelled is tried again, as a job with all its attempts; what may be paid only
-- where that is said. Its line and intended_at stay, so that what was sent is looked for first.
update imagen.jobs set
  status = 'pending', run_after = now(), attempts = 0, claims = 0, finished_at = null,
  error = null, error_detail = null
where id = any (%s::uuid[]) and status in ('failed', 'cancelled') and (
  %s or (
    coalesce(error_detail ->> 'billed', 'no') = 'no'
    and error_detail ->> 'retry' is distinct from 'reconcile'
  )
)
returning id::text, status, left(prompt, 200);

-- name: job_between
-- The ids from one to another, a few: those that begin alike.
select id::text from imagen.jobs where id between %s::uuid and %s::uuid order by id limit 3;

-- name: job_status
-- The status of jobs by their ids.
select id::text, status from imagen.jobs where id = any (%s::uuid[]);

-- name: job_rows
-- Jobs by their ids, as objects; also where the column `record` is not there yet.
select to_jsonb(job)::text from (
  select id, created_at, owner_user_id, status, priority, prompt, backend, params, run_after,
    attempts, max_attempts, claims, worker, lease, request, intended_at, started_at, finished_at,
    image_id, error, error_detail, to_jsonb(jobs) -> 'record' as record
  from imagen.jobs where id = any (%s::uuid[])
) as job;

-- name: job_list
-- Jobs of some statuses since a time, the newest first, as objects; how long each is in its status.
select to_jsonb(job)::text from (
  select id, created_at, status, priority, owner_user_id, backend, left(prompt, 200) as prompt,
    attempts, max_attempts, claims, worker, image_id, error, error_detail ->> 'code' as code,
    case when status = 'pending' and run_after > now() then run_after end as run_after,
    status = 'running' and lease < now() as stuck,
    (extract(epoch from now()) - extract(epoch from case status when 'pending' then created_at
      when 'running' then started_at else finished_at end))::float8 as for_s,
    (extract(epoch from finished_at) - extract(epoch from created_at))::float8 as took_s
  from imagen.jobs
  where status = any (%s) and (%s::timestamptz is null or created_at >= %s)
  order by created_at desc, id
) as job;
