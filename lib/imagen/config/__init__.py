"""The configuration: its keys, its file, the prices of models."""
