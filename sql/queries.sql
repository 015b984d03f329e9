-- Named queries. A block starts with "-- name:"; the line after it says what it is for.

-- name: owner_user_id
-- Whose images these are: the UUID for supabase.owner_user_id.
select id from auth.users where email = 'you@example.com';
