"""Progress of long steps: a bar on a terminal, log lines elsewhere, always on standard error.

Standard output is kept for a command's results, whose last line is one JSON object.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
LOG_EVERY_S = 5.0
log = structlog.get_logger()


def configure_logging() -> None:
    """Log lines to standard error, readable on a terminal and JSON elsewhere."""
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def track(items: Iterable[T], step: str, total: int, unit: str) -> Iterator[T]:
    """Yields `items`, showing how many of `total` are done."""
    if sys.stderr.isatty():
        columns = (TextColumn(step), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total)
        return
    started = logged = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - logged >= LOG_EVERY_S or done == total:
            log.info(step, done=done, total=total, unit=unit, seconds=round(now - started, 1))
            logged = now


@contextmanager
def step(name: str, **facts: object) -> Iterator[None]:
    """Logs the start of a step, and its end with the seconds that it took."""
    started = time.monotonic()
    log.info(f"{name}: start", **facts)
    yield
    log.info(f"{name}: done", seconds=round(time.monotonic() - started, 1))
