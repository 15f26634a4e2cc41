"""Entries of ``ignore_definitions``: what does not count, until when, and why."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import NamedTuple

from importlinter import fields

_UNTIL = re.compile(r"until\s+(?P<date>[^\s:]+)\s*(?::\s*(?P<reason>.*))?$")


class Detail(enum.Enum):
    """What an entry can say beside the name."""

    REASON = "reason"
    UNTIL = "until"


class Ignore(NamedTuple):
    """One entry.

    ``until`` is the last day on which it counts, as ``YYYY-MM-DD``, or empty: then it always does.
    """

    name: str
    until: str = ""
    reason: str = ""

    def lacks(self, required: Iterable[Detail]) -> list[str]:
        """What it should say and does not."""
        said = {Detail.REASON: self.reason, Detail.UNTIL: self.until}
        return [detail.value for detail in Detail if detail in required and not said[detail]]


class IgnoreField(fields.Field[Ignore]):
    """``name``, ``name  # reason``, ``name  # until YYYY-MM-DD`` or ``name  # until YYYY-MM-DD: reason``."""

    def parse(self, raw_data: str | list[str]) -> Ignore:
        """Read one entry.

        Raises:
            ValidationError: its date is none.
        """
        # A file's name may hold a #, but no name begins with one.
        name, *rest = re.split(r"\s+#\s*", str(raw_data).strip(), maxsplit=1)
        if not rest:
            return Ignore(name)
        dated = _UNTIL.match(rest[0])
        if dated is None:
            return Ignore(name, reason=rest[0])
        if not is_date(dated["date"]):
            raise fields.ValidationError(
                f"'{raw_data}': {dated['date']} is no date. Write '{name}  # until 2027-03-01: reason'."
            )
        return Ignore(name, dated["date"], (dated["reason"] or "").strip())


def is_date(text: str) -> bool:
    """Whether ``text`` is a day of the calendar, as ``YYYY-MM-DD``."""
    import datetime as dt  # noqa: PLC0415  most configurations give no date

    try:
        return dt.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def today() -> str:
    """The day, in UTC, as ``YYYY-MM-DD``."""
    import datetime as dt  # noqa: PLC0415  see above

    return dt.datetime.now(tz=dt.UTC).date().isoformat()


def expired(entries: Iterable[Ignore]) -> set[Ignore]:
    """The entries that no longer count."""
    dated = [entry for entry in entries if entry.until]
    now = today() if dated else ""
    return {entry for entry in dated if entry.until < now}
