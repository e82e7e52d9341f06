"""Entry point of ``python -m framework``."""

import sys

from framework.cli.main import main

if __name__ == "__main__":  # spawned worker processes import this module again
    sys.exit(main())
