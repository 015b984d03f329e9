"""Records and requests: one JSON object a line."""
