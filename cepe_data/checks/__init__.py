"""The checks of `sanity_check.py`, a module for each sub-command.

Every module has `HELP`, a line; `add_arguments(parser)`; and `run(args)`, which returns the exit status.
"""
