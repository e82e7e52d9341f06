"""What people look at: TensorBoard, the progress bar, ``explain``, text tables."""
