"""A report page as a browser sees it, for tests of pages."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


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
