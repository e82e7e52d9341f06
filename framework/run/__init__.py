"""``fit``, ``validate``, ``test``, ``predict`` and ``export``: recipes in, results out."""
