"""Queued jobs in PostgreSQL, and the worker that runs them."""
