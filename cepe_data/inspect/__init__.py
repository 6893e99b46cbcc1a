"""Tools that look at data: rows as text, plots, copies, overlap, progress, and all checks at once.

Every module of a sub-command of `sanity_check.py`, here and in the stages, has `HELP`, a line; `add_arguments(parser)`;
and `run(args, …)`, which returns the exit status. check_all.py and sanity_check.py bring what some need besides.
"""
