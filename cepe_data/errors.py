"""Errors that a user can mend: the message names the file and the remedy, the class decides the exit status."""


class PipelineError(Exception):
    """Something failed, or damage was found: exit status 1."""

    exit_status = 1


class ArgumentError(PipelineError):
    """The arguments are wrong, or do not fit what is already on disk: exit status 2."""

    exit_status = 2


class DamagedFileError(PipelineError):
    """A file is not what its format says."""
