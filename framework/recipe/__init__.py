"""From a recipe file and flags to a checked ``Recipe``."""
