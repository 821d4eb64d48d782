"""``python -m sdediff`` is the command ``sdediff``."""

from sdediff.cli import main

if __name__ == "__main__":
    main()
