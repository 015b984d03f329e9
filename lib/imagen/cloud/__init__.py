"""Supabase: images and rows in the cloud."""
