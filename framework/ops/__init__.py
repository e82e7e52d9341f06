"""Functions of tensors and networks; they know no plugin, no step and no run."""
