"""Many runs of one recipe: a search for settings, and comparisons."""
