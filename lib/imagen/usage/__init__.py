"""The cost log: what was paid, and what is in doubt."""
