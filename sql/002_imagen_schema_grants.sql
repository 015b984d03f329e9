-- Who may do what with imagen.images: an owner reads their own rows, the service role writes (it is
-- not bound by row level security), anon has nothing. A schema of our own has no default grants.

grant usage on schema imagen to authenticated, service_role;
revoke all on imagen.images from public, anon, authenticated;
grant select on imagen.images to authenticated;
grant select, insert, update, delete on imagen.images to service_role;

drop policy if exists images_owner_reads on imagen.images;
create policy images_owner_reads on imagen.images
  for select to authenticated
  using (owner_user_id = (select auth.uid()));  -- the select is run once, not for each row
