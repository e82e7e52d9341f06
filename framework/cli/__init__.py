"""The command line: flags, commands and tracebacks."""
