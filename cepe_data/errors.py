"""Errors that a user can fix: the message names the file and the remedy, the class decides the exit status."""


class PipelineError(Exception):
    """Something failed, or damage was found: exit status 1."""

    exit_status = 1


class ArgumentError(PipelineError):
    """The arguments are wrong, or do not fit the files on the disk: exit status 2."""

    exit_status = 2


class DamagedFileError(PipelineError):
    """A file does not follow its format."""
