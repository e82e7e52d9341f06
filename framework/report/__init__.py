"""Output for people: TensorBoard, the progress bar, ``explain``, text tables."""
