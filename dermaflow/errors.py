"""The errors that a caller may handle: one class per kind, each with its exit code; and how a message quotes a value.

Everything else is a programmer's error and keeps its traceback.
"""

_SHOWN = 80  # characters of a foreign value that a message quotes


class DermaflowError(Exception):
    """Base of the errors that are told to a person in one message, without a traceback."""

    exit_code = 1


class InputError(DermaflowError):
    """Something the user gave can not be used: says which file, field or value, what is allowed and what to do."""

    exit_code = 2


class GateError(DermaflowError):
    """A check on data or results did not pass, so the run stops: says which rule, and where the details are."""

    exit_code = 1


class InterruptedWorkError(DermaflowError):
    """The step was asked to end (SIGTERM) and kept what it had done: started again, it goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def shown(value: object) -> str:
    """A foreign value as a message may quote it: a text in quotes, control characters escaped, at most 80 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return repr(short) if isinstance(value, str) else short
