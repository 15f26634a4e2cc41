"""``moe-contracts init`` and ``preset``: a configuration to begin with."""

import configparser

import pytest

from contracts.presets import PRESETS, preset_path

DONE = """\
Wrote .importlinter. Next:
  moe-contracts lint      says what breaks these contracts today
  moe-contracts ignore    has it not count yet, as a list that only shrinks
"""


def read(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_copied(empty, preset):
    """All but the lists that serve several releases at once: those are for the tree to write."""
    outcome = empty.moe_contracts("init", "--preset", preset)
    assert (outcome.code, outcome.text) == (0, DONE)
    ours, theirs = read((empty.folder / ".importlinter").read_text()), read(preset_path(preset).read_text())
    assert ours.sections() == theirs.sections()
    for section in theirs.sections():
        expected = dict(theirs[section])
        if expected.get("unmatched_ignore_definitions_alerting") == "none":
            del expected["unmatched_ignore_definitions_alerting"], expected["ignore_definitions"]
        assert dict(ours[section]) == expected


def test_a_configuration_is_not_overwritten(empty):
    """Unless that is asked for."""
    empty.write({".importlinter": "mine"})
    text = "Error: .importlinter is there already. Give --force to write over it.\n"
    outcome = empty.moe_contracts("init", "--preset", "vllm")
    assert (outcome.code, outcome.text) == (2, text)
    assert (empty.folder / ".importlinter").read_text() == "mine"
    assert empty.moe_contracts("init", "--preset", "vllm", "--force").code == 0
    assert (empty.folder / ".importlinter").read_text().startswith("[importlinter]\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("setup.cfg", "[importlinter]\nroot_package = pkg\n"),
        ("pyproject.toml", '[tool.importlinter]\nroot_package = "pkg"\n'),
    ],
)
def test_another_configuration_is_not_hidden(empty, name, text):
    """import-linter reads one file only; force does not help here."""
    empty.write({name: text})
    outcome = empty.moe_contracts("init", "--preset", "vllm", "--force")
    assert outcome.code == 2
    assert outcome.text.endswith(f"{name} configures import-linter already. Take its section out first.\n")
    assert not (empty.folder / ".importlinter").exists()


def test_a_file_that_configures_something_else(empty):
    """It is no obstacle."""
    empty.write({"setup.cfg": "[metadata]\nname = x\n", "pyproject.toml": "[project]\nname = 'x'\n"})
    assert empty.moe_contracts("init", "--preset", "vllm").code == 0


def test_an_unknown_preset(empty):
    """The presets are listed."""
    outcome = empty.moe_contracts("init", "--preset", "none")
    assert outcome.code == 2
    assert "'vllm'" in outcome.text


def test_where_a_preset_lies(empty):
    """For lint-imports --config."""
    outcome = empty.moe_contracts("preset", "vllm")
    assert (outcome.code, outcome.text) == (0, f"{preset_path('vllm')}\n")
