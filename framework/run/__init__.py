"""``fit``, ``validate``, ``test``, ``predict`` and ``export``: train a recipe, evaluate and export the result."""
