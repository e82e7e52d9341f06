"""Recipes: each runs with one command, is made to be copied, and holds all that it needs but data and plugins."""
