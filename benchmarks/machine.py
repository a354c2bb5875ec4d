"""What a benchmark ran on: its processor and the versions of the packages it measured.

The standard library alone, so that it runs wherever a benchmark does.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """For instance `2 cores of Intel(R) Xeon(R) Processor`; the architecture where no model is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cores = sum(line.startswith("processor") for line in lines)
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {models[0] if models else platform.machine()}"


def versions(*packages: str) -> str:
    """For instance `Python 3.11.2, feast 0.64.0`; `unknown` for a package that is not installed."""
    return ", ".join([f"Python {platform.python_version()}", *map(_version, packages)])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} unknown"
