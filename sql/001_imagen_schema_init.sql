-- imagen.images: one row for each image in the bucket. Nobody may read it before 002 says who.

create schema if not exists imagen;

create table if not exists imagen.images (
  id uuid primary key,                 -- worked out from the record's render_id: twice is once
  created_at timestamptz not null default now(),
  -- no foreign key to auth.users: an image outlives the account, and 002 shows it to nobody else
  owner_user_id uuid not null,
  backend text not null,
  model text,
  workflow text,
  prompt text not null,
  negative_prompt text,
  seed numeric(20, 0) check (seed between 0 and 18446744073709551615),  -- more than a bigint holds
  steps integer,
  cfg double precision,
  width integer not null check (width > 0),
  height integer not null check (height > 0),
  bytes bigint not null check (bytes > 0),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  latency_ms bigint check (latency_ms >= 0),
  cost_usd_estimate numeric(12, 6) check (cost_usd_estimate >= 0),  -- null is unknown, never 0
  storage_path text not null unique,   -- the object's name in the bucket
  sidecar jsonb,                       -- the whole record
  job_id uuid                          -- the queued job that asked for it
);

-- the viewer's question: my newest images
create index if not exists images_owner_created_at
  on imagen.images (owner_user_id, created_at desc);

alter table imagen.images enable row level security;
