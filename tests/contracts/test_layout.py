"""Where things stand in a configuration file: as the parsers of INI and TOML see it, whatever is written."""

import configparser
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts._layout import ini_layout, toml_layout

NAMES = st.sampled_from(["name", "type", "modules", "Ignore_Definitions", "a.b"])
WORDS = st.text("ab.*->#;[]=: \u00e9", min_size=1, max_size=12).map(str.strip).filter(bool)
COMMENTS = st.sampled_from(["# why", "; why", "    # [importlinter:contract:x]", "  ; a = b", "", "   "])


@st.composite
def ini(draw: st.DrawFn) -> str:
    """An INI file of many shapes, its sections and options each once."""
    lines = []
    names = st.sampled_from(["importlinter", "importlinter:contract:a", "importlinter:b", "x"])
    for section in draw(st.lists(names, unique=True)):
        lines += [f"[{section}]", *draw(st.lists(COMMENTS, max_size=2))]
        for name in draw(st.lists(NAMES, unique_by=str.lower)):
            sign = draw(st.sampled_from([" = ", "=", ": "]))
            lines.append(f"{name}{sign}{draw(st.one_of(st.just(''), WORDS))}")
            for _ in range(draw(st.integers(0, 3))):
                indent = " " * draw(st.integers(1, 6))
                lines.append(draw(st.one_of(WORDS.map(lambda word, indent=indent: indent + word), COMMENTS)))
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines)


@given(ini())
def test_ini(text):
    """Sections and values are those of configparser, each entry on the line that says it."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text.replace("\r\n", "\n"))
    except configparser.Error:
        return  # import-linter refuses it
    lines = text.replace("\r\n", "\n").split("\n")
    names = [name for name in parser.sections() if name.startswith("importlinter:")]
    found = ini_layout(text)
    assert len(found) == len(names)
    for name, section in zip(names, found, strict=True):
        assert lines[section.line - 1].strip() == f"[{name}]"
        assert section.options.keys() == parser[name].keys()
        for key, option in section.options.items():
            expected = [line for line in parser[name][key].split("\n") if line]
            assert [entry for _, entry in option.entries] == [line.replace("%%", "%") for line in expected]
            assert all(entry in lines[line - 1] for line, entry in option.entries)
            assert option.line <= option.end <= section.end


STRINGS = st.one_of(
    st.text("ab#[]=,\\ '", max_size=8).map(lambda text: '"' + text.replace("\\", "\\\\") + '"'),
    st.text('ab#[]=," ', max_size=8).map(lambda text: f"'{text}'"),
)
FILLERS = st.sampled_from(["# [[tool.importlinter.contracts]]", "", "  # a = [", '# "', "# '''"])


@st.composite
def toml(draw: st.DrawFn) -> str:
    """A TOML file of many shapes."""
    lines = list(draw(st.lists(FILLERS, max_size=2)))
    lines += ["[tool.importlinter]", "root_package = 'x'  # [[tool.importlinter.contracts]]"]
    for number in range(draw(st.integers(0, 3))):
        heads = ["[[tool.importlinter.contracts]]", '[[ tool."importlinter".contracts ]]  # x']
        lines.append(draw(st.sampled_from(heads)))
        lines += draw(st.lists(FILLERS, max_size=2))
        lines.append(f"name = {draw(STRINGS)}")
        lines.append(f'text = """\n[[tool.importlinter.contracts]]\n{number} "" # \\""""')
        entries = draw(st.lists(STRINGS, max_size=3))
        if draw(st.booleans()):
            lines.append(f"list = [{', '.join(entries)}]{draw(st.sampled_from(['', '  # ]']))}")
        else:
            inside = [line for entry in entries for line in (f"  {entry},", draw(FILLERS))]
            lines += ["list = [", *inside, "]"]
    lines += ["[tool.other]", "a = [{b = ['[']}, # ]", "]"]
    return "\n".join(lines)


@settings(deadline=None)
@given(toml())
def test_toml(text):
    """Tables and strings are those of tomllib, each entry on the line that says it."""
    contracts = tomllib.loads(text)["tool"]["importlinter"].get("contracts", [])
    lines = text.split("\n")
    found = toml_layout(text)
    assert len(found) == len(contracts)
    for contract, section in zip(contracts, found, strict=True):
        assert "contracts" in lines[section.line - 1]
        assert section.options.keys() == contract.keys()
        for key, option in section.options.items():
            value = contract[key]
            assert [entry for _, entry in option.entries] == (value if isinstance(value, list) else [value])
            assert lines[option.line - 1].startswith(key)
            assert all(option.line <= line <= option.end for line, _ in option.entries)
