"""A map as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from contracts.map._atlas import Atlas, Chart, Implementation, State

__all__ = ["MOST_CHARACTERS", "render"]

MOST_CHARACTERS = 65_000  # GitHub takes 65,536 in a comment


def render(atlas: Atlas) -> str:
    """The whole map, or, where a comment could not hold that, what is misplaced; or at least how many."""
    for states in (set(State), _NEWS, set[State]()):
        parts = [f"## {_escape(atlas.title)}\n\n{atlas.summary}\n"]
        for chart in atlas.charts:
            rows = [row for row in _rows(chart) if row.state in states]
            parts.append(_chart(chart, rows, sum(chart.counts.values())))
        text = "\n".join(parts)
        if len(text) <= MOST_CHARACTERS:
            break
    return text


_NEWS = {State.MISPLACED, State.UNDECIDED}


def _rows(chart: Chart) -> Iterator[Implementation]:
    """What is elsewhere first, and of that what is misplaced."""
    for zone in (chart.elsewhere, chart.home):
        items = [item for modules in zone.values() for items in modules.values() for item in items]
        yield from sorted(items, key=lambda item: (item.state not in _NEWS, item.module, item.line))


def _chart(chart: Chart, items: list[Implementation], total: int) -> str:
    counts = ", ".join(f"{count} {state.words}" for state, count in chart.counts.items())
    about = f"Subclasses of `{chart.bases}` belong in `{chart.allowed}`: {counts}."
    lines = [f"### {_escape(chart.name)}", "", about, ""]
    if items:
        lines += ["| | class | module |", "|---|---|---|"]
        lines += [_row(chart, item) for item in items]
    if len(items) < total:
        lines += ["", f"{total - len(items)} more are not shown."]
    return "\n".join(lines) + "\n"


def _row(chart: Chart, item: Implementation) -> str:
    name = f"**`{item.name}`**" if item.state in _NEWS else f"`{item.name}`"
    return f"| {item.state.sign} | {name} | `{chart.short(item.module)}`, line {item.line} |"


def _escape(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|" else character for character in text)
