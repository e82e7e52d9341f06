"""Run folders, checkpoint files, when to save them, resuming a run, and signals."""
