"""Exceptions that can be pickled, so that a process pool hands them on whole."""

from __future__ import annotations

import copyreg
from typing import Any

__all__ = ["Portable"]


class Portable(BaseException):
    """A base of exceptions whose constructor takes something else than their message.

    Python rebuilds a pickled exception by calling its class with ``args``, the message, and so
    fails for such a class. Here the exception is rebuilt from its message and its attributes,
    without a call of the constructor.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """The message and the attributes, notes included."""
        rebuild = getattr(copyreg, "__newobj__")  # noqa: B009  # typeshed does not have it
        return rebuild, (type(self), *self.args), dict(vars(self))
