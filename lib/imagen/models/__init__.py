"""Model files: where they belong, where they come from, fetching them."""
