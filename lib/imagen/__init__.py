"""imagen: small programs that turn lines of JSON into images."""

__version__ = "0.1.0"
