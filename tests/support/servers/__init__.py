"""Look-alikes of the servers that imagen talks to: real HTTP, held to recordings of real ones."""
