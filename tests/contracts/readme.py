"""Write the table of contract types into the README: ``python -m tests.contracts.readme``."""

import re

from contracts._documentation import table
from tests.contracts.projects import REPOSITORY


def main() -> None:
    readme = REPOSITORY / "README.md"
    text = readme.read_text()
    new, count = re.subn(r"\| type \| holds when \|\n(?:\|.*\n)+", lambda _: table(), text)
    if count != 1:
        raise SystemExit(f"{readme} has {count} tables that begin with '| type | holds when |', and should have 1.")
    readme.write_text(new)


if __name__ == "__main__":
    main()
