"""Write the table of real defects into the README: ``python -m tests.checks.readme``."""

import re
from pathlib import Path

from checks.report import defects

README = Path(__file__).parents[2] / "README.md"


def main() -> None:
    """Replace the table, wherever it is."""
    text = README.read_text()
    new, count = re.subn(r"\| seen in \| what went wrong \| caught by \|\n(?:\|.*\n)+", lambda _: defects(), text)
    if count != 1:
        raise SystemExit(f"{README} has {count} tables that begin with '| seen in |', and should have 1.")
    README.write_text(new)


if __name__ == "__main__":
    main()
