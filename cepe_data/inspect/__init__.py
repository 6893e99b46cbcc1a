"""Tools that look at data: rows as text, plots, duplicates, overlap, and all checks at once.

Every module of a sub-command of `sanity_check.py`, here and in the stages, has `HELP`, a line, and
`add_arguments(parser)`. Those here have `run(args)`, which returns the exit status; those of a stage have
`check(report, options, added)`, which takes values, and which check_all.py runs, with what it adds from this folder.
"""
