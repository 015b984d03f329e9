"""One render, from the request to its files; paid once."""
