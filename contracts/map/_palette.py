"""The colours of a map, for light and dark, as CSS variables. Text has a contrast of at least 4.5 to 1."""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "PAIRS", "style"]

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "line": "#d5d9e0",
    "text": "#1b1f26",
    "quiet": "#586069",
    "placed": "#0b6b3a",
    "placed-back": "#e9f7ef",
    "misplaced": "#a3140d",
    "misplaced-back": "#fdecea",
    "ignored": "#7a4b00",
    "ignored-back": "#fff3dc",
}
DARK = {
    "page": "#0f1216",
    "card": "#191d23",
    "line": "#343a43",
    "text": "#e8ebef",
    "quiet": "#a4adb8",
    "placed": "#6fdc9b",
    "placed-back": "#12291d",
    "misplaced": "#ff9d94",
    "misplaced-back": "#3a1815",
    "ignored": "#f2bd64",
    "ignored-back": "#30240f",
}
# Which colour stands on which.
PAIRS = [
    *((text, back) for text in ("text", "quiet") for back in ("page", "card")),
    *((text, "card") for text in ("placed", "misplaced", "ignored")),
    *((text, "page") for text in ("placed", "misplaced", "ignored")),
    *((text, f"{text}-back") for text in ("placed", "misplaced", "ignored")),
    *(("text", f"{back}-back") for back in ("placed", "misplaced", "ignored")),
    *(("quiet", f"{back}-back") for back in ("placed", "misplaced", "ignored")),
]


def style(selector: str) -> str:
    """The variables, set for ``selector``, with the reader's preference for light or dark."""
    light = " ".join(f"--{name}: {colour};" for name, colour in LIGHT.items())
    dark = " ".join(f"--{name}: {colour};" for name, colour in DARK.items())
    return (
        f"{selector} {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}\n"
    )
