"""Nothing is lost: the run folder, checkpoint files, when to save, how to resume, signals."""
