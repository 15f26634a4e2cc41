"""A map as one SVG image, which grows downwards with what it shows."""

from __future__ import annotations

import textwrap
from html import escape

from contracts.map._atlas import Atlas, Chart, Implementation, State
from contracts.map._palette import style

__all__ = ["render"]

_WIDTH = 1100
_MARGIN, _PAD, _GAP = 28, 14, 12
_ROW, _HEAD = 19, 30
_CHARACTER = 7.3  # the width of a character of the names, at 12 pixels in the widest of the usual fonts

_STYLE = """\
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--text); }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12px; }
.h1 { font-size: 23px; font-weight: 700; } .h2 { font-size: 18px; font-weight: 700; }
.h3 { font-size: 14px; font-weight: 700; } .small { font-size: 13px; } .bold { font-weight: 700; }
.quiet { fill: var(--quiet); } .page { fill: var(--page); } .rule { stroke: var(--line); }
.package { fill: none; stroke: var(--line); } .home { stroke: var(--placed); }
.module { fill: var(--card); stroke: var(--line); }
text.placed { fill: var(--placed); } text.misplaced { fill: var(--misplaced); font-weight: 700; }
text.ignored, text.undecided { fill: var(--ignored); } text.abstract { fill: var(--quiet); }
rect.misplaced { fill: var(--misplaced-back); } rect.ignored, rect.undecided { fill: var(--ignored-back); }
"""


class _Canvas:
    """Elements, and how far down they reach."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.y = float(_MARGIN)

    def text(self, x: float, y: float, text: str, kind: str, *, full: str = "", anchor: str = "") -> None:
        title = f"<title>{escape(full)}</title>" if full else ""
        end = f' text-anchor="{anchor}"' if anchor else ""
        self.elements.append(f'<text x="{x:g}" y="{y:g}" class="{kind}"{end}>{title}{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: int = 8) -> None:
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" class="{kind}"/>'
        )

    def line(self, text: str, kind: str, height: float, full: str = "") -> None:
        """A line of its own, from the left margin."""
        self.y += height
        self.text(_MARGIN, self.y, text, kind, full=full)

    def rule(self) -> None:
        self.y += 26
        self.elements.append(
            f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{self.y:g}" y2="{self.y:g}" class="rule"/>'
        )


def render(atlas: Atlas) -> str:
    """The image."""
    canvas = _Canvas()
    canvas.line(atlas.title, "h1", 14)
    canvas.line(atlas.summary, "small quiet", 24)
    for chart in atlas.charts:
        _chart(canvas, chart)
    height = canvas.y + _MARGIN
    body = "\n".join(canvas.elements)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:g}" viewBox="0 0 {_WIDTH} {height:g}" \
role="img" aria-labelledby="map-title map-desc">
<title id="map-title">{escape(atlas.title)}</title>
<desc id="map-desc">{escape(_description(atlas))}</desc>
<style>
{style("svg")}{_STYLE}</style>
<rect width="100%" height="100%" class="page"/>
{body}
</svg>
"""


def _description(atlas: Atlas) -> str:
    """The picture in words: the counts, and whatever is misplaced by name."""
    words = [atlas.summary]
    for chart in atlas.charts:
        misplaced = [
            f"{item.module}.{item.name}"
            for modules in chart.elsewhere.values()
            for items in modules.values()
            for item in items
            if item.state is State.MISPLACED
        ]
        said = f"misplaced are {', '.join(misplaced)}" if misplaced else "nothing is misplaced"
        words.append(f"{chart.name}: {said}.")
    return " ".join(words)


def _chart(canvas: _Canvas, chart: Chart) -> None:
    canvas.rule()
    canvas.line(_cut(chart.name, 100), "h2", 34, chart.name)
    about = f"Subclasses of {chart.bases} belong in {chart.allowed}."
    if chart.prefix:
        about += f" Names are relative to {chart.prefix}."
    canvas.y += 4
    for line in textwrap.wrap(about, 150):
        canvas.line(line, "small quiet", 18)
    canvas.y += 24
    x = float(_MARGIN)
    for state, count in chart.counts.items():
        canvas.text(x, canvas.y, state.sign, f"small bold {state.key}")
        label = f"{count} {state.words}"
        canvas.text(x + 18, canvas.y, label, "small")
        x += 18 + 7.2 * len(label) + 20
    _zone(canvas, chart, "Where they belong", chart.home, " home")
    _zone(canvas, chart, "Elsewhere", chart.elsewhere, "")


def _zone(
    canvas: _Canvas, chart: Chart, title: str, packages: dict[str, dict[str, list[Implementation]]], kind: str
) -> None:
    if not packages:
        return
    items = [item for modules in packages.values() for items in modules.values() for item in items]
    canvas.line(f"{title} ({len(items)})", "h3", 32)
    canvas.y += 10
    inner = _WIDTH - 2 * _MARGIN - 2 * _PAD
    names = [item.name for item in items] + [module.rpartition(".")[2] for item in items for module in [item.module]]
    wanted = min(max(max(map(len, names)) * _CHARACTER + 3 * _PAD + 40, 230), inner)
    columns = int((inner + _GAP) // (wanted + _GAP))
    width = (inner - (columns - 1) * _GAP) / columns
    for package, modules in packages.items():
        top = canvas.y
        bottoms = [top + 2 * _PAD + 16.0] * min(columns, max(len(modules), 1))
        for module, members in modules.items():
            column = bottoms.index(min(bottoms))
            x = _MARGIN + _PAD + column * (width + _GAP)
            bottoms[column] = _module(canvas, x, bottoms[column], width, module, members) + _GAP
        height = max(bottoms) - _GAP + _PAD - top
        # Behind its modules, but drawn after: it has no filling.
        canvas.box(_MARGIN, top, _WIDTH - 2 * _MARGIN, height, f"package{kind}", 10)
        canvas.text(
            _MARGIN + _PAD, top + _PAD + 10, _cut(chart.short(package), 130), "mono bold quiet", full=package
        )
        canvas.y = top + height + _GAP
    canvas.y -= _GAP


def _module(canvas: _Canvas, x: float, y: float, width: float, module: str, members: list[Implementation]) -> float:
    """Draw a module; returns where it ends."""
    height = _HEAD + _ROW * len(members) + 8
    canvas.box(x, y, width, height, "module")
    room = int((width - 3 * _PAD - 40) / _CHARACTER)
    canvas.text(x + _PAD, y + 20, _cut(module.rpartition(".")[2], room + 6), "mono bold", full=module)
    for number, item in enumerate(members):
        top = y + _HEAD + number * _ROW
        if item.state in {State.MISPLACED, State.IGNORED, State.UNDECIDED}:
            canvas.box(x + 1, top, width - 2, _ROW, item.state.key, 0)
        canvas.text(x + _PAD, top + 13.5, item.state.sign, f"mono {item.state.key}")
        kind = item.state.key if item.state in {State.MISPLACED, State.ABSTRACT} else ""
        full = f"{item.place} {item.name}: {item.state.words}"
        canvas.text(x + _PAD + 18, top + 13.5, _cut(item.name, room), f"mono {kind}".strip(), full=full)
        canvas.text(x + width - _PAD + 4, top + 13.5, str(item.line), "mono quiet", anchor="end")
    return y + height


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(length - 1, 1)]}\N{HORIZONTAL ELLIPSIS}"
