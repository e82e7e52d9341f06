"""The bundled plugins: one family a file, each file's mathematics first as a pure function of tensors.

They use the same door as anyone's: the entry points of group ``framework.plugins`` make them available by name, and
only a recipe or a flag turns one on. They import ``framework`` and never each other.
"""
