-- imagen.jobs.released_at: since when nobody has a job whose line may still be on its way to a
-- provider. A worker that claims it next must not take "the provider does not list it" for proof
-- before that is long enough ago. A trigger keeps it, so that workers of every release do.

alter table imagen.jobs add column if not exists released_at timestamptz;

create or replace function imagen.note_release() returns trigger
language plpgsql set search_path = ''
as $$
begin
  if new.status = 'pending' then
    -- claims are counted anew by an answer: what had one has nothing on its way
    new.released_at := case
      when old.status = 'running' and new.claims = 0 then null
      when old.intended_at is not null then clock_timestamp()
    end;
  end if;
  return new;
end
$$;

drop trigger if exists jobs_note_release on imagen.jobs;
create trigger jobs_note_release before update of status on imagen.jobs
  for each row when (old.status is distinct from new.status)
  execute function imagen.note_release();
