"""``python -m framework``."""

import sys

from framework.cli.main import main

if __name__ == "__main__":  # spawned workers import this module anew
    sys.exit(main())
