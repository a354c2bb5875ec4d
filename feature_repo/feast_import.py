"""Quarters what `import feast` costs: no class is compiled twice, and torch waits until it is used.

Feast marks its classes with typeguard's `@typechecked`, which parses and compiles a class's whole
module anew for every one of its methods: 3.5 s of the 6 s that the import takes. From the import
of this package on, the mark means nothing in Feast, so a wrong argument is Feast's own error and
no `TypeCheckError`; what others mark is checked as ever.

Feast also imports torch, half of what is left, for answers that are asked for as tensors. Its
module that does so is replaced by one that imports torch when the first such answer is made.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FEAST, TORCH_WRAPPER = "feast", "feast.torch_wrapper"


class BeforeFeast:
    """A finder on `sys.meta_path` that finds nothing: it is asked before Feast is imported."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == FEAST:
            sys.meta_path.remove(cls)
            _leave_feast_unchecked()
            _import_torch_later()
        return None


def _leave_feast_unchecked() -> None:
    import typeguard

    check = typeguard.typechecked

    def typechecked(target: Any = None, **options: Any) -> Any:
        if getattr(target, "__module__", "").partition(".")[0] == FEAST:
            return target
        return check(target, **options)

    vars(typeguard)["typechecked"] = typechecked


def _import_torch_later() -> None:
    def get_torch() -> ModuleType:
        import torch

        return torch

    wrapper = ModuleType(TORCH_WRAPPER, "Feast's access to torch, which it imports when asked.")
    vars(wrapper)["get_torch"] = get_torch
    sys.modules[TORCH_WRAPPER] = wrapper


if FEAST not in sys.modules:
    sys.meta_path.insert(0, BeforeFeast)
