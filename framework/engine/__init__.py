"""One optimizer step, and the Lightning hooks around it."""
