"""Reports as they arrive: in a pipe, in a file, in a terminal of 80 columns."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from tests.contracts.projects import REPOSITORY, Outcome, Project, report, script

DEEP = "pkg/a_rather_long_folder_name/another_rather_long_folder_name/and_a_long_module_name"
MODULE = DEEP.replace("/", ".")
FINDING = f"{DEEP}.py:4:7 Bad is a Base and lives in {MODULE}: it belongs in pkg.good"
DOUBT = (
    f"{DEEP}.py:100:7 Open may be a Base, which belongs in pkg.good: one of its bases comes from eval(), "
    f"which reading cannot follow. Write that base out, or add {MODULE}.Open to ignore_definitions"
)
GUIDANCE = "Move the class [/x] to [bold]pkg/good/[/bold] :100: " + " ".join(["and so on"] * 20)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def wide(small) -> Project:
    """Give a project whose report has lines longer than 80 columns: a finding, a warning, a guidance."""
    *folders, _ = DEEP.split("/")
    packages = ["/".join([*folders[:n], "__init__.py"]) for n in range(1, len(folders) + 1)]
    source = "from pkg.base import Base\n\n\nclass Bad(Base):\n    def run(self): ...\n"
    source += "\n" * 94 + "class Open(*eval('(Base,)')):\n    def run(self): ...\n"
    small.write({"pkg/bad.py": "", **dict.fromkeys(packages, ""), f"{DEEP}.py": source})
    rule = {"type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"]}
    small.configure([{**rule, "broken_contract_guidance": GUIDANCE}])
    return small


EXPECTED = report({"Rule": [FINDING, "", GUIDANCE]}, warnings={"Rule": [DOUBT]})


def in_terminal(project: Project, columns: int) -> Outcome:
    """Run ``lint-imports`` in a pseudo-terminal; its colours and cursor movements are taken out of the text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)}
    command = [script("lint-imports"), "--no-logo"]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=project.folder, env=environment, start_new_session=True, **streams) as process:
        os.close(theirs)
        chunks = []
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        code = process.wait(timeout=60)
    os.close(ours)
    return Outcome(code, b"".join(chunks).decode())


def test_a_pipe(wide):
    """Nothing is wrapped, no bracket is lost, and no line number becomes an emoji."""
    assert tuple(wide.lint_as_process()) == (1, EXPECTED)


@pytest.mark.parametrize("columns", ["20", "80"])
def test_a_pipe_with_columns_given(wide, columns):
    """CI systems set COLUMNS; our lines stay whole all the same."""
    outcome = wide.lint_as_process(env={"COLUMNS": columns})
    lines = outcome.text.splitlines()
    assert [line for line in (FINDING, GUIDANCE, f"- {DOUBT}") if line not in lines] == []


def test_a_file_in_ascii(wide):
    """An output that cannot print every character prints the report."""
    wide.write({"pkg/caf\N{LATIN SMALL LETTER E WITH ACUTE}.py": "from pkg.base import Base\n\n\nclass A(Base): ...\n"})
    outcome = wide.lint_as_process(env={"PYTHONIOENCODING": "ascii:backslashreplace"})
    assert FINDING in outcome.text.splitlines()
    assert outcome.code == 1


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal(wide, columns):
    """The terminal wraps, not we: each finding is one line, that can be copied and clicked whole."""
    outcome = in_terminal(wide, columns)
    assert outcome.code == 1
    text = ESCAPE.sub("", outcome.text.replace("\r\n", "\n"))
    lines = text.splitlines()
    assert [line for line in (FINDING, GUIDANCE, f"- {DOUBT}") if line not in lines] == []
    assert "Traceback" not in text


def test_a_terminal_shows_colours(wide):
    """Findings are red there, and plain in a pipe."""
    assert f"\x1b[31m{FINDING}\x1b[0m" in in_terminal(wide, 80).text
    assert "\x1b" not in wide.lint_as_process().text


def test_names_in_brackets(small):
    """Names that look like markup, in findings and in warnings."""
    small.write({"pkg/bad.py": ""})
    source = "from pkg.base import Base\n\n\nclass Bad(Base):\n    def run(self): ...\n"
    names = ["[bold]a", "[none]", "[x]"]
    small.write({f"pkg/{name}.py": source for name in names})
    rule = {"type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"]}
    stale = ["[/x]", "dict[str, list[int]]", "a\\", ":100:"]
    small.configure([{**rule, "ignore_definitions": stale, "unmatched_ignore_definitions_alerting": "warn"}])
    lines = [f"pkg/{name}.py:4:7 Bad is a Base and lives in pkg.{name}: it belongs in pkg.good" for name in names]
    warnings = [f"ignore_definitions: '{name}' matches nothing any more. Remove it." for name in sorted(stale)]
    expected = report({"Rule": lines}, warnings={"Rule": warnings})
    assert tuple(small.lint_as_process()) == (1, expected)


def test_the_terminal_of_these_tests_is_one(small):
    """The pseudo-terminal is as wide as it says, or the tests above would pass for nothing."""
    outcome = in_terminal(small, 80)
    small.configure([{"type": "placement", "base_classes": [], "allowed_modules": [], "x" * 200: ""}])
    wrapped = ESCAPE.sub("", in_terminal(small, 80).text)
    assert outcome.code == 1
    assert "x" * 200 not in wrapped
