"""Example recipes: each runs with one command and is self-contained except for data and plugins, to be copied."""
