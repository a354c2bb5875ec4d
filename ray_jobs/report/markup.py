"""Small pieces of HTML. A plain string is always escaped; only `Html` passes as it is."""

import html
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from feature_repo.workspace import Workspace
from ray_jobs.report.plotting import Figure


class Html(str):
    """Markup that is safe: made by these functions, never out of data."""

    __slots__ = ()


@dataclass
class Section:
    """One part of the page; `figures` by the id of the element that they are drawn into."""

    title: str
    parts: list[Html] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What is missing, by name."""

    def say(self, sentence: str) -> None:
        self.parts.append(element("p", sentence))

    def note(self, problem: str) -> None:
        """Something that could not be read."""
        self.parts.append(Html(f'<p class="note">{safe(problem)}</p>'))

    def miss(self, workspace: Workspace, what: str, command: str) -> None:
        """A piece that is not there yet, and the command that makes it."""
        self.left_out.append(what)
        full = f"crescendo --workspace {shlex.quote(str(workspace.root))} {command}"
        self.parts.append(
            Html(f'<p class="missing">No {safe(what)} yet: {element("code", full)} makes it.</p>')
        )

    def charts(self, charts: Iterable[tuple[str, str, str, Figure]], *, wide: bool = False) -> None:
        """Charts side by side where there is room: (id, title, how to read it, figure)."""
        drawn = []
        for name, title, reading, figure in charts:
            self.figures[name] = figure
            drawn.append(
                f"<figure><figcaption><b>{safe(title)}</b> {safe(reading)}</figcaption>"
                f'<div class="chart" id="{safe(name)}" role="img" aria-label="{safe(title)}">'
                "</div></figure>"
            )
        kind = "charts wide" if wide else "charts"
        self.parts.append(Html(f'<div class="{kind}">{"".join(drawn)}</div>'))


def safe(value: object) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(tag: str, content: object) -> Html:
    return Html(f"<{tag}>{safe(content)}</{tag}>")


def details(summary: str, content: Html) -> Html:
    """Content that is folded away until it is asked for."""
    return Html(f"<details>{element('summary', summary)}{content}</details>")


def two_lines(first: object, second: object) -> Html:
    return Html(f"{safe(first)}<small>{safe(second)}</small>")


def lines(texts: Sequence[str]) -> Html:
    return Html("<br>".join(safe(text) for text in texts))


def table(name: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """The first column names the rows. It scrolls sideways where the screen is narrow."""
    columns = "".join(f'<th scope="col">{safe(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{safe(row[0])}</th>'
        + "".join(f"<td>{safe(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{safe(name)}"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values."""
    items = "".join(
        f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in pairs
    )
    return Html(f"<dl>{items}</dl>")


def moment(iso: str) -> str:
    """An ISO time to the minute."""
    return iso[:16].replace("T", " ") + " UTC"
