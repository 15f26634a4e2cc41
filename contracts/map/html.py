"""A map as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import re
from html import escape

from contracts.map._atlas import Atlas, Chart, Implementation, State
from contracts.map._palette import style

__all__ = ["render"]

_STYLE = """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 0.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 0.25rem; }
h3 { font-size: 0.95rem; margin: 1.25rem 0 0.5rem; }
h4 { font: 600 0.85rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0 0 0.6rem;
  color: var(--quiet); overflow-wrap: anywhere; }
h5 { font: 600 0.8rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; padding: 0.5rem 0.65rem;
  overflow-wrap: anywhere; border-bottom: 1px solid var(--line); }
p { margin: 0.2rem 0; color: var(--quiet); max-width: 60rem; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.chart { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 0.35rem 0.5rem; list-style: none; padding: 0; margin: 0.75rem 0 0; }
.legend li { border-radius: 999px; padding: 0.1rem 0.65rem; font-size: 0.8rem; }
.package { border: 1px solid var(--line); border-radius: 10px; padding: 0.75rem; margin: 0 0 0.75rem; }
.home .package { border-color: var(--placed); }
.modules { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 0.6rem;
  align-items: start; }
.module { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.module ul { list-style: none; margin: 0; padding: 0.25rem 0; }
.module li { display: flex; gap: 0.5rem; padding: 0.15rem 0.65rem; align-items: baseline;
  font: 0.8rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.module li b { flex: none; width: 1em; text-align: center; }
.module li .name { min-width: 0; }
.module li small { color: var(--quiet); margin-left: auto; font-size: 0.72rem; flex: none; padding-left: 0.25rem; }
.placed b { color: var(--placed); }
.misplaced { background: var(--misplaced-back); }
.misplaced b, .misplaced .name { color: var(--misplaced); font-weight: 600; }
.ignored, .undecided { background: var(--ignored-back); }
.ignored b, .undecided b { color: var(--ignored); }
.abstract b, .abstract .name { color: var(--quiet); }
.legend .placed { background: var(--placed-back); }
.legend .abstract { border: 1px solid var(--line); }
.only { display: inline-flex; gap: 0.5rem; align-items: center; margin-top: 0.9rem; font-size: 0.9rem; }
.only input { accent-color: var(--misplaced); width: 1.1rem; height: 1.1rem; }
body:has(#only:checked) :is(.clean, .module li:is(.placed, .abstract)) { display: none; }
@media print { body { background: none; } .only { display: none; } .module { break-inside: avoid; } }
"""


def render(atlas: Atlas) -> str:
    """The page."""
    charts = "\n".join(_chart(number, chart) for number, chart in enumerate(atlas.charts))
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(atlas.title)}</title>
<style>
{style(":root")}{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(atlas.title)}</h1>
<p>{escape(atlas.summary)}</p>
<label class="only"><input type="checkbox" id="only"> Show only what is not where it belongs</label>
{charts}
</main>
</body>
</html>
"""


def _chart(number: int, chart: Chart) -> str:
    legend = "".join(
        f'<li class="{state.key}"><b aria-hidden="true">{state.sign}</b> {count} {escape(state.words)}</li>'
        for state, count in chart.counts.items()
    )
    inside = f" Names are relative to <code>{_breakable(chart.prefix)}</code>." if chart.prefix else ""
    zones = _zone(chart, "home", "Where they belong", chart.home)
    zones += _zone(chart, "elsewhere", "Elsewhere", chart.elsewhere)
    return f"""\
<section class="chart" aria-labelledby="chart-{number}">
<h2 id="chart-{number}">{escape(chart.name)}</h2>
<p>Subclasses of <code>{_breakable(chart.bases)}</code> belong in <code>{_breakable(chart.allowed)}</code>.{inside}</p>
<ul class="legend">{legend}</ul>
{zones}</section>"""


def _zone(chart: Chart, key: str, title: str, packages: dict[str, dict[str, list[Implementation]]]) -> str:
    if not packages:
        return ""
    count = sum(len(items) for modules in packages.values() for items in modules.values())
    clean = _clean([item for modules in packages.values() for items in modules.values() for item in items])
    boxes = "".join(_package(chart, package, modules) for package, modules in packages.items())
    return f'<div class="{key}{clean}">\n<h3>{title} ({count})</h3>\n{boxes}</div>\n'


def _package(chart: Chart, package: str, modules: dict[str, list[Implementation]]) -> str:
    clean = _clean([item for items in modules.values() for item in items])
    cards = "".join(_module(module, items) for module, items in modules.items())
    head = f"<h4>{_breakable(chart.short(package))}</h4>"
    return f'<div class="package{clean}">\n{head}\n<div class="modules">\n{cards}</div>\n</div>\n'


def _module(module: str, items: list[Implementation]) -> str:
    rows = "".join(
        f'<li class="{item.state.key}" title="{escape(f"{item.place} {item.state.words}")}">'
        f'<b role="img" aria-label="{escape(item.state.words)}">{item.state.sign}</b>'
        f'<span class="name">{_breakable(item.name)}</span><small>{item.line}</small></li>\n'
        for item in items
    )
    name = _breakable(module.rpartition(".")[2])
    head = f'<h5 title="{escape(module)}">{name}</h5>'
    return f'<article class="module{_clean(items)}">\n{head}\n<ul>\n{rows}</ul>\n</article>\n'


def _breakable(name: str) -> str:
    """A name that a narrow column breaks between its words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[._])", "<wbr>", escape(name))


def _clean(items: list[Implementation]) -> str:
    """The class of what holds nothing that is misplaced."""
    return " clean" if all(item.state in {State.PLACED, State.ABSTRACT} for item in items) else ""
