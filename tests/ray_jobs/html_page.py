"""A report page as a browser sees it, for tests of pages."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class Page(HTMLParser):
    """What a browser sees: elements with attributes, text, cells of tables, scripts."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.text = self.style = ""
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data: str) -> None:
        if "script" in self.inside:
            self.scripts.append(data)
        elif "style" in self.inside:
            self.style += data
        else:
            self.text += data
            if {"td", "th"} & set(self.inside):
                self.rows[-1][-1] += "|" + data if self.inside[-1] == "small" else data

    def row(self, start: str) -> list[str]:
        """The cells after the row's name; a second line comes after a bar."""
        return next(row[1:] for row in self.rows if row[0].startswith(start))

    def figures(self) -> dict[str, Any]:
        found = re.search(r"const figures = (.*);\n", self.scripts[-1])
        assert found is not None
        return json.loads(found[1])


def in_a_browser(path: str, folder: Path) -> tuple[str, str]:
    """The page's elements once its scripts have run, and the browser's log; skips without one."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    )
    drawn = subprocess.run(
        [
            chromium,
            *flags.split(),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser's own requests end here
            f"--user-data-dir={folder / 'browser'}",
            f"file://{path}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return drawn.stdout, drawn.stderr
