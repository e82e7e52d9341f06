"""What every test shares: one torch thread, quiet Lightning, a small real data set."""

from __future__ import annotations

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
