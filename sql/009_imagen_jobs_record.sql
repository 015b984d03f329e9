-- imagen.jobs.record: the record of a job that is over (docs/reference/record.md): its file, its place in the
-- cloud, its cost. Whoever reads the job reads it. The worker writes it with the job's end, shortened
-- to 256 KiB; a job that is queued again has none, whichever release queues it.

alter table imagen.jobs add column if not exists record jsonb
  check (jsonb_typeof(record) = 'object' and octet_length(record::text) <= 1048576);
comment on column imagen.jobs.record is 'The record of a job that is over; null while it is not';

create or replace function imagen.forget_record() returns trigger
language plpgsql set search_path = ''
as $$
begin
  new.record := null;
  return new;
end
$$;
revoke all on function imagen.forget_record from public, anon, authenticated;

drop trigger if exists jobs_forget_record on imagen.jobs;
create trigger jobs_forget_record before update of status on imagen.jobs
  for each row when (new.status = 'pending' and new.record is not null)
  execute function imagen.forget_record();

notify pgrst, 'reload schema';
