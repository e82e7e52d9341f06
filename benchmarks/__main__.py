"""All benchmarks that take minutes: ``python -m benchmarks``."""

from __future__ import annotations

from benchmarks.step import main

if __name__ == "__main__":
    main()
