"""Functions of tensors and networks; they know neither plugins nor steps nor runs."""
