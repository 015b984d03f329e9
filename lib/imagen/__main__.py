"""`python -m imagen TOOL …` is `imagen TOOL …`."""

from .commands.imagen import main

main()
