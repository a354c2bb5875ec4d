"""Halves what `import feast` costs: its classes are not compiled a second time for type checks.

Feast marks its classes with typeguard's `@typechecked`, which parses and compiles a class's whole
module anew for every one of its methods: 3.5 s of the 6 s that the import takes. From the import
of this package on, the mark means nothing in Feast, so a wrong argument is Feast's own error and
no `TypeCheckError`; what others mark is checked as ever.
"""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

FEAST = "feast"


class BeforeFeast:
    """A finder on `sys.meta_path` that finds nothing: it is asked before Feast is imported."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == FEAST:
            sys.meta_path.remove(cls)
            _leave_feast_unchecked()
        return None


def _leave_feast_unchecked() -> None:
    import typeguard

    check = typeguard.typechecked

    def typechecked(target: Any = None, **options: Any) -> Any:
        if getattr(target, "__module__", "").partition(".")[0] == FEAST:
            return target
        return check(target, **options)

    vars(typeguard)["typechecked"] = typechecked


if FEAST not in sys.modules:
    sys.meta_path.insert(0, BeforeFeast)
