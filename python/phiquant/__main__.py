"""``python -m phiquant`` is the command ``phiquant``."""

from phiquant.cli import main

main()
