-- mai.imagen_usage: one row for each submit, what it cost and who asked. The prompt is never here,
-- only its sha256.

create schema if not exists mai;

create table if not exists mai.imagen_usage (
  id uuid primary key default gen_random_uuid(),
  created_at timestamptz not null default now(),
  backend text not null,
  model text,
  seed numeric(20, 0) check (seed between 0 and 18446744073709551615),  -- more than a bigint holds
  prompt_hash text check (prompt_hash ~ '^[0-9a-f]{64}$'),
  latency_ms bigint check (latency_ms >= 0),
  cost_usd_estimate numeric(12, 6) check (cost_usd_estimate >= 0),  -- null is unknown, never 0
  caller text,
  render_id uuid,
  submit text not null,  -- the provider's handle
  unique (backend, submit)
);
create index if not exists imagen_usage_created_at on mai.imagen_usage (created_at desc);
create index if not exists imagen_usage_caller on mai.imagen_usage (caller);

-- The service role writes and reads. Nobody else: a row has no owner whom a policy could ask for, and
-- on a project where people sign up, who spends how much is not everybody's business.
grant usage on schema mai to service_role;
revoke all on mai.imagen_usage from public, anon, authenticated;
grant select, insert, update, delete on mai.imagen_usage to service_role;
alter table mai.imagen_usage enable row level security;

notify pgrst, 'reload schema';
