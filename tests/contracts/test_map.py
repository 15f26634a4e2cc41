"""``moe-contracts map``: which implementations live where, for the eye."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from contracts.map import Atlas, Chart, Implementation, State, html, markdown, svg
from contracts.map._palette import DARK, LIGHT, PAIRS
from tests.contracts.projects import Project

CLASS = "from pkg.base import Base\n\n\nclass {name}(Base):\n    def run(self): ...\n"
FORMATS = {"map.svg": "svg", "map.html": "html", "map.md": "markdown"}


@pytest.fixture
def world(small) -> Project:
    """Give a project with an implementation in every state."""
    small.write({
        "pkg/old.py": CLASS.format(name="Old"),
        "pkg/half.py": "from pkg.base import Base\n\n\nclass Half(Base): ...\n",
        "pkg/open.py": CLASS.format(name="Open").replace("(Base)", "(*eval('(Base,)'))"),
    })  # fmt: skip
    small.contract(
        name="Fine <code> & more",
        type="placement",
        base_classes=["pkg.base.Base"],
        allowed_modules=["pkg.good"],
        ignore_definitions=["pkg.old.Old"],
    )
    return small


SUMMARY = "5 implementations: 1 in place, 1 misplaced, 1 ignored for now, 1 abstract, 1 undecided."


class Rows(HTMLParser):
    """The classes that a page lists, with their states, and all that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, str] = {}
        self.loaded: list[str] = []
        self.open: list[str] = []
        self._state, self._name = "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loaded += [given[key] for key in ("src", "href") if key in given]
        if tag not in {"meta", "input", "wbr"}:
            self.open.append(tag)
        if tag == "li" and "title" in given:
            self._state = given["class"]
        if tag == "span" and given.get("class") == "name":
            self._name = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "span":
            self.rows[self._name] = self._state

    def handle_data(self, data):
        if self.open and self.open[-1] == "span":
            self._name += data


STATES = {"Fine": "placed", "Bad": "misplaced", "Old": "ignored", "Half": "abstract", "Open": "undecided"}


def test_a_page(world):
    """Each class is there in its state; the tags match, and nothing is loaded from anywhere."""
    outcome = world.moe_contracts("map", "--output", "map.html")
    assert (outcome.code, outcome.text) == (0, f"{SUMMARY} Drawn in map.html.\n")
    page = (world.folder / "map.html").read_text()
    rows = Rows(page)
    assert rows.rows == STATES
    assert rows.open == []
    assert rows.loaded == []
    assert not re.search(r"https?:|url\(|@import|<script", page)
    assert '<h2 id="chart-0">Fine &lt;code&gt; &amp; more</h2>' in page
    assert 'title="pkg/bad.py:4 misplaced"' in page


def test_an_image(world):
    """It is well formed, says in words what it shows, and marks each state by a sign, not by colour alone."""
    assert world.moe_contracts("map", "--output", "map.svg").code == 0
    root = ET.fromstring((world.folder / "map.svg").read_text())
    space = {"s": "http://www.w3.org/2000/svg"}
    ids = root.get("aria-labelledby", "").split()
    said = [element.text for name in ("title", "desc") for element in root.findall(f"s:{name}", space)]
    assert [root.find(f"*[@id='{name}']").text for name in ids] == said
    assert said == ["What lives where in pkg", f"{SUMMARY} Fine <code> & more: misplaced are pkg.bad.Bad."]
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name, state in STATES.items():
        assert any(text.endswith(name) for text in texts), name
        assert State[state.upper()].sign in texts
    assert "pkg/bad.py:4 Bad: misplacedBad" in texts


def test_what_an_image_draws_lies_in_it(world):
    """No box sticks out, and no two modules overlap."""
    world.write({f"pkg/m{n}.py": CLASS.format(name=f"{'Long' * (n % 9)}N{n}") for n in range(60)})
    root = ET.fromstring(world.moe_contracts("map").text)
    width, height = float(root.get("width")), float(root.get("height"))
    boxes = [
        tuple(float(element.get(key)) for key in ("x", "y", "width", "height"))
        for element in root.iter("{http://www.w3.org/2000/svg}rect")
        if element.get("class") == "module"
    ]
    assert len(boxes) == 65
    for n, (x, y, w, h) in enumerate(boxes):
        assert min(x, y, width - x - w, height - y - h) >= 0
        for a, b, c, d in boxes[:n]:
            assert x >= a + c or a >= x + w or y >= b + d or b >= y + h


def test_a_comment(world):
    """The whole text."""
    assert world.moe_contracts("map", "--format", "markdown").text == f"""\
## What lives where in pkg

{SUMMARY}

### Fine \\<code\\> & more

Subclasses of `pkg.base.Base` belong in `pkg.good`: 1 in place, 1 misplaced, 1 misplaced, ignored for now, 1 abstract: \
may live anywhere, 1 undecided: reading cannot tell whether it is one.

| | class | module |
|---|---|---|
| \N{BALLOT X} | **`Bad`** | `bad`, line 4 |
| ? | **`Open`** | `open`, line 4 |
| \N{WHITE DIAMOND} | `Half` | `half`, line 4 |
| \N{HORIZONTAL ELLIPSIS} | `Old` | `old`, line 4 |
| \N{CHECK MARK} | `Fine` | `good.fine`, line 4 |
"""


def large(count: int, misplaced: int) -> Atlas:
    """An atlas of many implementations."""

    def packages(prefix: str, number: int, state: State):
        found: dict[str, dict[str, list[Implementation]]] = {}
        for n in range(number):
            package, module = f"{prefix}.p{n % 40}", f"{prefix}.p{n % 40}.m{n % 1000}"
            item = Implementation(module, n + 1, f"Implementation{state.name}{n}", f"{module}.py", state)
            found.setdefault(package, {}).setdefault(module, []).append(item)
        return found

    home, away = packages("pkg.home", count - misplaced, State.PLACED), packages("pkg.away", misplaced, State.MISPLACED)
    return Atlas("pkg", [Chart("Rule", "pkg.Base", "pkg.home", "pkg", home, away)])


@pytest.mark.parametrize("misplaced", [0, 20, 4000])
def test_a_comment_that_github_takes(misplaced):
    """What is misplaced is shown if there is room for that; in any case it is counted."""
    text = markdown.render(large(5000, misplaced))
    assert len(text) <= markdown.MOST_CHARACTERS
    shown = misplaced if misplaced < 1000 else 0
    assert text.count("**") == 2 * shown
    assert f"{5000 - shown} more are not shown." in text


def test_a_package_of_any_size():
    """Five thousand implementations in a thousand modules: every one is drawn."""
    atlas = large(5000, 20)
    root = ET.fromstring(svg.render(atlas))
    drawn = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert sum("Implementation" in text for text in drawn) == 5000
    assert len(Rows(html.render(atlas)).rows) == 5000


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(colours):
    """WCAG 2.2 AA: a contrast of 4.5 to 1 at least, for each colour of text on each background that it has."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(text: str, back: str) -> float:
        dark, light = sorted((luminance(colours[text]), luminance(colours[back])))
        return (light + 0.05) / (dark + 0.05)

    assert LIGHT.keys() == DARK.keys()
    assert {pair: contrast(*pair) for pair in PAIRS if contrast(*pair) < 4.5} == {}


@pytest.mark.parametrize("name", FORMATS)
def test_the_name_decides(world, name):
    """And a format that is given decides over it; without a file it is printed."""
    world.moe_contracts("map", "--output", name)
    printed = world.moe_contracts("map", "--format", FORMATS[name]).text
    assert (world.folder / name).read_text() == printed


def test_what_cannot_be_drawn(small):
    """No placement contract, a base that is not there, a folder that is missing: exit code 2, and the reason."""
    outcome = small.moe_contracts("map", "--output", "none/map.svg")
    assert outcome.code == 2
    assert "there is no folder" in outcome.text
    small.contract(type="placement", base_classes=["pkg.base.Bass"], allowed_modules=["pkg.good"])
    outcome = small.moe_contracts("map")
    assert outcome.code == 2
    assert outcome.text.startswith(
        "Error: The picture would not be whole:\n.importlinter:7 Base class 'pkg.base.Bass' does not exist."
    )
    small.contract(type="independence", modules=["pkg.bad", "pkg.good"])
    outcome = small.moe_contracts("map")
    text = "Error: Nothing to draw: no contract of type placement is among those checked.\n"
    assert (outcome.code, outcome.text) == (2, text)
    (small.folder / ".importlinter").unlink()
    outcome = small.moe_contracts("map")
    assert (outcome.code, outcome.text) == (2, "Error: Could not read any configuration.\n")
