-- The private bucket, and who may read what is in it: an object belongs to the owner of the image
-- whose storage_path is its name. Only the service role writes, past row level security.
-- Objects are never deleted by SQL: Storage refuses it, and the files would stay.

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
values (
  'imagen-generated', 'imagen-generated', false, 52428800,  -- 50 MiB
  array['image/png', 'image/jpeg', 'image/webp']
)
on conflict (id) do update set
  public = false,
  file_size_limit = coalesce(buckets.file_size_limit, excluded.file_size_limit),
  allowed_mime_types = coalesce(buckets.allowed_mime_types, excluded.allowed_mime_types);

drop policy if exists imagen_owner_reads on storage.objects;
create policy imagen_owner_reads on storage.objects
  for select to authenticated
  using (
    bucket_id = 'imagen-generated'
    and exists (
      select from imagen.images
      where images.storage_path = objects.name and images.owner_user_id = (select auth.uid())
    )
  );
