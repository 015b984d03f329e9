-- imagen.jobs: one row for each image that somebody wants made later. A web page inserts a row, a
-- worker claims it; whose it is reads it and may cancel it, and writes nothing else.

create table if not exists imagen.jobs (
  id uuid primary key default gen_random_uuid(),
  created_at timestamptz not null default now(),
  owner_user_id uuid not null default auth.uid(),
  status text not null default 'pending'
    check (status in ('pending', 'running', 'done', 'failed', 'cancelled')),
  priority integer not null default 0,  -- the higher, the earlier
  prompt text not null check (char_length(prompt) <= 100000 and prompt ~ '\S'),
  backend text check (char_length(backend) between 1 and 200),  -- null is the worker's default
  params jsonb not null default '{}' check (
    jsonb_typeof(params) = 'object'
    and octet_length(params::text) <= 1048576
    and not jsonb_path_exists(params, 'strict $.**{100}')  -- no program has to read deeper ones
  ),
  -- the clock, not now(): of many rows in one insert the first comes first
  run_after timestamptz not null default clock_timestamp(),
  attempts integer not null default 0 check (attempts >= 0),  -- that had an answer
  max_attempts integer not null default 5 check (max_attempts > 0),
  claims integer not null default 0 check (claims >= 0),  -- since the last answer
  fence bigint not null default 0,     -- raised by each claim: who holds an older one has lost it
  worker text,                         -- who has it, or had it last
  lease timestamptz,                   -- until when it is the worker's
  request jsonb check (jsonb_typeof(request) = 'object'),  -- the line that every attempt sends
  intended_at timestamptz,             -- since when that may have been sent
  started_at timestamptz,              -- of the last claim
  finished_at timestamptz,
  image_id uuid references imagen.images (id) on delete set null,
  error text,
  error_detail jsonb,
  check (status <> 'running' or (worker is not null and lease is not null)),
  check ((status in ('done', 'failed', 'cancelled')) = (finished_at is not null))
) with (fillfactor = 80);  -- renewing a lease stays on its page

-- exactly the order of a claim
create index if not exists jobs_pending
  on imagen.jobs (priority desc, run_after, id) where status = 'pending';
-- what a rescue looks through: as many as there are workers. The lease itself is in no index, so
-- that renewing it touches none.
create index if not exists jobs_running on imagen.jobs (worker) where status = 'running';
create index if not exists jobs_owner_created_at on imagen.jobs (owner_user_id, created_at desc);
create index if not exists jobs_created_at on imagen.jobs (created_at desc);
-- deleting an image looks here
create index if not exists jobs_image_id on imagen.jobs (image_id) where image_id is not null;

-- The rows of a job change often, those of a finished one never again.
alter table imagen.jobs set (
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05
);

-- who may do what

revoke all on imagen.jobs from public, anon, authenticated;
grant select on imagen.jobs to authenticated;
grant insert (owner_user_id, prompt, backend, params) on imagen.jobs to authenticated;
grant select, insert, update, delete on imagen.jobs to service_role;
alter table imagen.jobs enable row level security;

drop policy if exists jobs_owner_reads on imagen.jobs;
create policy jobs_owner_reads on imagen.jobs
  for select to authenticated
  using (owner_user_id = (select auth.uid()));
drop policy if exists jobs_owner_inserts on imagen.jobs;
create policy jobs_owner_inserts on imagen.jobs
  for insert to authenticated
  with check (owner_user_id = (select auth.uid()));

create or replace function imagen.cancel_job(id uuid) returns boolean
language sql volatile security definer set search_path = ''
as $$
  with cancelled as (
    update imagen.jobs set status = 'cancelled', finished_at = now(), lease = null
    where jobs.id = cancel_job.id and jobs.owner_user_id = (select auth.uid())
      and jobs.status in ('pending', 'running')
    returning 1
  )
  select exists (select from cancelled)
$$;
comment on function imagen.cancel_job is 'Cancel a job of one''s own; false when it is over already';
revoke all on function imagen.cancel_job from public, anon;
grant execute on function imagen.cancel_job to authenticated;

-- Who is told what. Channel imagen_jobs: '' there may be something to claim, 'cancelled <id>' stop
-- with that one. Channel imagen_jobs_done: '<id>' is over.

create or replace function imagen.jobs_inserted() returns trigger
language plpgsql set search_path = ''
as $$
begin
  perform pg_catalog.pg_notify('imagen_jobs', '');
  return null;
end
$$;

create or replace function imagen.job_moved() returns trigger
language plpgsql set search_path = ''
as $$
begin
  if new.status = 'pending' then
    perform pg_catalog.pg_notify('imagen_jobs', '');
    return null;
  end if;
  perform pg_catalog.pg_notify('imagen_jobs_done', new.id::text);
  if old.status = 'running' and new.status = 'cancelled' then
    perform pg_catalog.pg_notify('imagen_jobs', 'cancelled ' || new.id);
  end if;
  return null;
end
$$;

revoke all on function imagen.jobs_inserted, imagen.job_moved from public, anon, authenticated;

create or replace trigger jobs_inserted after insert on imagen.jobs
  for each statement execute function imagen.jobs_inserted();
create or replace trigger job_moved after update of status on imagen.jobs
  for each row when (new.status is distinct from old.status and new.status <> 'running')
  execute function imagen.job_moved();

notify pgrst, 'reload schema';
