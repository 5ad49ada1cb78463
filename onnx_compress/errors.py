"""What can go wrong, each with the exit code it ends in."""


class CompressError(Exception):
    """The user's error: one line that says what, where and what to do."""

    exit_code = 4


class ThresholdError(CompressError):
    """A threshold was missed; nothing was written."""

    exit_code = 1


class UsageError(CompressError):
    """The words are wrong, or the output cannot be written."""

    exit_code = 2


class InputError(CompressError):
    """The model or the data cannot be read or used."""

    exit_code = 3


class LimitError(CompressError):
    """A limit was hit, the disk is full, or a pass or native code failed."""

    exit_code = 4
