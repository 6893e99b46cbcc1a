"""Tools that look at data: rows as text, plots, duplicates, overlap, and all checks at once.

Every module of a sub-command of `sanity_check.py`, here and in the stages, has `HELP`, a line; `add_arguments(parser)`;
and `run(args)`, which returns the exit status. Those of a stage also have `check(report, options)`, which takes values;
check_all.py adds what some checks need from this folder.
"""
