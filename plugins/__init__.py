"""The bundled plugins: one family per file, each with its mathematics as pure functions of tensors first.

They are registered like third-party plugins: entry points of group ``framework.plugins`` make them available by name,
and only a recipe or a flag turns one on. They import ``framework`` and never each other.
"""
