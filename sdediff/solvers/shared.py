"""Options that several functions share: typed records, from which signatures and docstrings are
made.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sdediff.solvers.given import nearest

__all__ = ["Shared"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shared:
    """``defaults`` of options by name, which the docstrings of ``records`` explain, a paragraph
    for each.
    """

    defaults: Mapping[str, Any]
    records: tuple[type, ...]

    def takes(self, record: type, *, without: Collection[str] = ()) -> Callable[[_F], _F]:
        """Decorate a function with ``**options: Unpack[record]``: its signature and its docstring
        show the options one by one, except those in ``without``, which it refuses (`chosen`).
        """
        kinds = {name: kind.__forward_arg__ for name, kind in record.__annotations__.items()}
        names = [name for name in kinds if name not in without]

        def shown(function: _F) -> _F:
            own = inspect.signature(function)
            *named, _ = own.parameters.values()
            added = [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=self.defaults[name],
                    annotation=kinds[name],
                )
                for name in names
            ]
            made: Any = function
            made.__signature__ = own.replace(parameters=[*named, *added])
            words = inspect.cleandoc(function.__doc__ or "")
            made.__doc__ = f"{words}\n\n{self.documented(names)}"
            return function

        return shown

    def documented(self, names: Collection[str]) -> str:
        """What the records say of these options."""
        found: list[str] = []
        for record in self.records:
            text = inspect.cleandoc(record.__doc__ or "")
            for entry in re.split(r"\n+(?=``\w+``(?:, ``\w+``)*: )", text)[1:]:
                if set(re.findall(r"``(\w+)``", entry.partition(": ")[0])) & set(names):
                    found.append(entry)
        return "\n".join(found)

    def chosen(self, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those that ``function`` was given, and the others as they are by default.
        Raises TypeError for one that it does not take, with the nearest name.
        """
        taken = inspect.signature(function).parameters
        for name in options:
            if name not in taken:
                own = ", ".join(known for known in taken if known in self.defaults)
                raise TypeError(
                    f"{function.__name__} takes no option {name!r}{nearest(name, taken)}; its "
                    f"options are {own}"
                )
        return {**self.defaults, **options}
