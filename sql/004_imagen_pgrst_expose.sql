-- PostgREST serves imagen and mai too. The setting replaces the whole list, so what is there is kept,
-- in its order: the first schema is the one that a request without a profile gets. Where PostgREST
-- has a list for this database alone, that one counts, and gets them too.

do $expose$
declare
  found record;
  listed text[];
  wanted text;
begin
  for found in
    select here.database, (
      select substr(setting, length('pgrst.db_schemas=') + 1)
      from pg_db_role_setting, unnest(setconfig) as setting
      where setrole = 'authenticator'::regrole and setdatabase = here.database
        and setting like 'pgrst.db\_schemas=%'
    ) as value
    from (select 0::oid as database union all
          select oid from pg_database where datname = current_database()) as here
  loop
    if found.value is null and found.database <> 0 then
      continue;
    end if;
    if found.value is null then
      -- then PostgREST's own configuration counts, which cannot be read from here
      found.value := case when to_regnamespace('graphql_public') is null
        then 'public' else 'public, graphql_public' end;
      raise warning 'the exposed schemas were not set in the database: % is taken as what they were',
        found.value;
    end if;
    listed := regexp_split_to_array(trim(found.value), '\s*,\s*');
    foreach wanted in array array['imagen', 'mai'] loop
      if not wanted = any (listed) then
        listed := listed || wanted;
      end if;
    end loop;
    execute format(
      'alter role authenticator %s set pgrst.db_schemas = %L',
      case when found.database = 0 then '' else format('in database %I', current_database()) end,
      array_to_string(listed, ', ')
    );
  end loop;
end
$expose$;

notify pgrst, 'reload config';
notify pgrst, 'reload schema';
