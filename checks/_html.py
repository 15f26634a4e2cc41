"""The matrix as one page: readable without JavaScript, in light and dark, with every message behind its cell."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from checks._registry import Check
from checks.engine import Outcome

if TYPE_CHECKING:
    from checks.report import Matrix

__all__ = ["render"]

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2530, #e6e9ee); --paper: light-dark(#fbfaf7, #14181d);
  --line: light-dark(#e2ded5, #2a3038); --kept: light-dark(#2f7d4f, #66c28a); --broken: light-dark(#b3261e, #ff8a80);
  --tint: light-dark(#e9f3ec, #1b2a22); --alarm: light-dark(#fbe9e7, #3a1f1d); --faint: light-dark(#6c7178, #8d949c); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2.5rem auto;
  max-width: 76rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p.sum { margin: 0; font-size: 1.05rem; } .env, .legend { color: var(--faint); font-size: .85rem; margin: .25rem 0; }
.scroll { overflow-x: auto; margin-top: 1rem; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: center; }
thead th { vertical-align: bottom; padding-bottom: .5rem; }
thead th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; font-weight: 600; }
tbody th { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--paper); }
tbody th small { display: block; color: var(--faint); font-weight: 400; font-size: .8rem; }
tr.topic th { padding-top: 1.1rem; color: var(--faint); font-size: .75rem; letter-spacing: .06em;
  text-transform: uppercase; }
td { min-width: 1.6rem; font-size: 1rem; border-left: 1px solid var(--paper); border-right: 1px solid var(--paper); }
td.kept { color: var(--kept); background: var(--tint); } td.skipped { color: var(--faint); }
td.broken { background: var(--alarm); } td a { color: var(--broken); font-weight: 700; text-decoration: none; }
td a small { display: block; line-height: 1; font-size: .7rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem; }
details:target { border-color: var(--broken); } summary { cursor: pointer; }
details p { overflow-wrap: anywhere; } ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
@media (max-width: 44rem) { body { margin: 1.25rem auto; padding: 0 .75rem; } tbody th small { display: none; }
  tbody th { width: 8rem; font-size: .78rem; line-height: 1.25; } th, td { padding: .25rem .2rem; } }
"""

_MARKS = {"kept": "✓", "broken": "✗", "skipped": "\N{EN DASH}"}


def render(matrix: "Matrix", backends: Sequence[str], checks: Sequence[Check]) -> str:
    """The page."""
    counts = {status: sum(one.status == status for one in matrix.outcomes) for status in ("kept", "broken", "skipped")}
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in backends)
    body = "\n".join(_group(matrix, backends, topic, checks) for topic in dict.fromkeys(one.topic for one in checks))
    environment = ", ".join(f"{escape(key)} {escape(value)}" for key, value in matrix.environment.items())
    legend = ", ".join(f"{mark} {status}" for status, mark in _MARKS.items())
    verdict = "Every contract that could be shown is kept." if not matrix.broken else "Some contracts are broken."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Contract checks: {counts["broken"]} broken</title><style>{_STYLE}</style></head><body>
<h1>Contract checks of prepare/finalize backends</h1>
<p class="sum">{verdict} {counts["kept"]} kept, {counts["broken"]} broken, {counts["skipped"]} skipped.</p>
<p class="env">{environment}</p><p class="legend">{legend}</p>
<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>
{body}
</table></div>
{_broken(matrix)}
{_skipped(matrix)}
</body></html>
"""


def _anchor(outcome: Outcome) -> str:
    return escape(f"{outcome.backend}-{outcome.check}-{outcome.world_size}")


def _group(matrix: "Matrix", backends: Sequence[str], topic: str, checks: Sequence[Check]) -> str:
    title = f'<tr class="topic"><th scope="rowgroup" colspan="{len(backends) + 1}">{escape(topic)}</th></tr>'
    rows = "\n".join(_row(matrix, backends, check) for check in checks if check.topic == topic)
    return f"<tbody>{title}\n{rows}</tbody>"


def _row(matrix: "Matrix", backends: Sequence[str], check: Check) -> str:
    cells = "".join(_cell(matrix.cell(name, check.name)) for name in backends)
    name = escape(check.name).replace("_", "_<wbr>")
    return f'<tr><th scope="row">{name}<small>{escape(check.property)}</small></th>{cells}</tr>'


def _cell(outcomes: Sequence[Outcome]) -> str:
    broken = [outcome for outcome in outcomes if outcome.status == "broken"]
    if broken:
        sizes = ", ".join(str(outcome.world_size) for outcome in broken)
        inside = f'<a href="#{_anchor(broken[0])}">{_MARKS["broken"]}<small>{sizes}</small></a>'
        return f'<td class="broken" title="broken in worlds of {sizes} ranks">{inside}</td>'
    kept = [outcome for outcome in outcomes if outcome.status == "kept"]
    if kept:
        sizes = ", ".join(str(outcome.world_size) for outcome in kept)
        what = f"{sum(one.cases for one in kept)} cases kept in worlds of {sizes} ranks"
        return f'<td class="kept" title="{what}">{_MARKS["kept"]}</td>'
    reason = outcomes[0].message if outcomes else "not run"
    return f'<td class="skipped" title="{escape(reason)}">{_MARKS["skipped"]}</td>'


def _broken(matrix: "Matrix") -> str:
    items = "\n".join(
        f'<details id="{_anchor(one)}" open><summary><strong>{escape(one.backend)}</strong>: {escape(one.check)}, '
        f"{one.world_size} ranks</summary><p>{escape(one.message)}</p>"
        + (f"<pre>{escape(one.detail)}</pre>" if one.detail else "")
        + "</details>"
        for one in matrix.broken
    )
    return f"<h2>Broken</h2>\n{items}" if items else ""


def _skipped(matrix: "Matrix") -> str:
    reasons: dict[str, list[str]] = {}
    for one in matrix.outcomes:
        if one.status == "skipped":
            reasons.setdefault(one.message, []).append(f"{one.check} ({one.backend}, {one.world_size})")
    items = "\n".join(
        f"<li>{escape(reason)}<details><summary>{len(where)}</summary>{escape(', '.join(where))}</details></li>"
        for reason, where in reasons.items()
    )
    return f"<h2>Skipped, and why</h2>\n<ul>{items}</ul>" if items else ""
