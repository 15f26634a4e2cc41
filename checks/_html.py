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
  --line: light-dark(#dcd8cf, #2e353d); --kept: light-dark(#2f7d4f, #66c28a); --broken: light-dark(#b3261e, #ff8a80);
  --faint: light-dark(#8b8f96, #767d86); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2.5rem auto;
  max-width: 76rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p.sum { margin: 0 0 1.5rem; } .env { color: var(--faint); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: center; white-space: nowrap; }
thead th { vertical-align: bottom; } thead th span { writing-mode: sideways-lr; }
tbody th { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--paper); }
tbody th small { display: block; color: var(--faint); font-weight: 400; white-space: normal; min-width: 22rem; }
td.kept { color: var(--kept); } td.skipped { color: var(--faint); }
td.broken { color: var(--broken); font-weight: 700; } td a { color: inherit; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem; }
details:target { border-color: var(--broken); } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; } li { margin: .2rem 0; }
"""


def render(matrix: "Matrix", backends: Sequence[str], checks: Sequence[Check]) -> str:
    """The page."""
    counts = {status: sum(one.status == status for one in matrix.outcomes) for status in ("kept", "broken", "skipped")}
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in backends)
    body = "\n".join(_row(matrix, backends, check) for check in checks)
    environment = ", ".join(f"{escape(key)} {escape(value)}" for key, value in matrix.environment.items())
    verdict = "Every contract that could be shown is kept." if not matrix.broken else "Some contracts are broken."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Contract checks: {counts["broken"]} broken</title><style>{_STYLE}</style></head><body>
<h1>Contract checks of prepare/finalize backends</h1>
<p class="sum">{verdict} {counts["kept"]} kept, {counts["broken"]} broken, {counts["skipped"]} skipped.
<span class="env">{environment}</span></p>
<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
{_broken(matrix)}
{_skipped(matrix)}
</body></html>
"""


def _anchor(outcome: Outcome) -> str:
    return escape(f"{outcome.backend}-{outcome.check}-{outcome.world_size}")


def _row(matrix: "Matrix", backends: Sequence[str], check: Check) -> str:
    cells = "".join(_cell(matrix.cell(name, check.name)) for name in backends)
    return f'<tr><th scope="row">{escape(check.name)}<small>{escape(check.property)}</small></th>{cells}</tr>'


def _cell(outcomes: Sequence[Outcome]) -> str:
    broken = [outcome for outcome in outcomes if outcome.status == "broken"]
    if broken:
        sizes = ", ".join(str(outcome.world_size) for outcome in broken)
        return f'<td class="broken"><a href="#{_anchor(broken[0])}">BROKEN<br>{sizes} ranks</a></td>'
    kept = [outcome for outcome in outcomes if outcome.status == "kept"]
    if kept:
        return f'<td class="kept" title="{sum(one.cases for one in kept)} cases">kept</td>'
    reason = outcomes[0].message if outcomes else "not run"
    return f'<td class="skipped" title="{escape(reason)}">&ndash;</td>'


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
