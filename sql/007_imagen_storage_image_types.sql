-- GIF and AVIF may go into the bucket too. Where somebody has taken one of the first three types out
-- of the list, or emptied it, the list is theirs and stays as it is; without a list all types may.

update storage.buckets
set allowed_mime_types = allowed_mime_types || array(
  select kind from unnest(array['image/gif', 'image/avif']) as kind
  where not kind = any (allowed_mime_types)
)
where id = 'imagen-generated'
  and allowed_mime_types @> array['image/png', 'image/jpeg', 'image/webp'];
