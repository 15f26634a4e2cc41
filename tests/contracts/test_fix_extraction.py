"""``moe-contracts fix`` takes a class out of a module with just what it needs."""

from pathlib import Path

import pytest

from tests.contracts.fixing import Repository

BASE = {
    "pkg/__init__.py": "",
    "pkg/base.py": "class Backend:\n    pass\n",
    "pkg/backends/__init__.py": "",
    "pkg/tools.py": "def tool():\n    return 5\n",
}
STAYS = "\n\ndef other():\n    return 1\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a repository in which backends belong in ``pkg.backends``."""
    found = Repository(tmp_path)
    found.write(BASE)
    found.contract(type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.backends"])
    return found


def split(repository: Repository, source: str, **others: str) -> tuple[str, str]:
    """The new ``pkg/backends/slow.py``, and what stays of ``pkg/many.py``; both are imported, before and after."""
    files = {f"{name.replace('.', '/')}.py": text.encode() for name, text in others.items()}
    repository.write({"pkg/many.py": source.encode(), **files})
    repository.commit()
    modules = ", ".join(["pkg.many", *others])
    repository.python(f"import {modules}; pkg.many.SlowBackend().run()")
    repository.apply()
    repository.python(f"import {modules}, pkg.backends.slow; pkg.backends.slow.SlowBackend().run()")
    files = repository.files()
    return files["pkg/backends/slow.py"], files["pkg/many.py"]


def test_takes_the_constants_and_private_helpers_that_nothing_else_needs(repository):
    """With their comments and decorators, in their order; what needs them, too, stays."""
    new, rest = split(
        repository,
        """#!/usr/bin/env python
# Licence

import functools
import os.path
import sys

from pkg.base import Backend
from pkg.tools import tool

SIZE = 3  # of the slow one
_A, _B = 1, 2
SHARED = 4


# Counts.
@functools.cache
def _count():
    return SIZE + _A + tool()


def other():
    return SHARED + len(sys.argv)


class SlowBackend(Backend):
    def run(self):
        return _count() + _B + len(os.path.sep)
""",
    )
    assert new == (
        "# Licence\n\nimport functools\nimport os.path\n\nfrom pkg.base import Backend\nfrom pkg.tools import tool\n\n"
        "SIZE = 3  # of the slow one\n_A, _B = 1, 2\n\n\n# Counts.\n@functools.cache\ndef _count():\n"
        "    return SIZE + _A + tool()\n\n\nclass SlowBackend(Backend):\n    def run(self):\n"
        "        return _count() + _B + len(os.path.sep)\n"
    )
    assert rest == (
        "#!/usr/bin/env python\n# Licence\n\nimport sys\n\nSHARED = 4\n\n\ndef other():\n"
        "    return SHARED + len(sys.argv)\n"
    )


def test_imports_a_helper_that_both_need(repository):
    """It stays where it is."""
    new, rest = split(
        repository,
        "from pkg.base import Backend\n\n\ndef _shared():\n    return 1\n\n\ndef other():\n    return _shared()\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return _shared()\n",
    )
    assert new == (
        "from pkg.base import Backend\nfrom pkg.many import _shared\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return _shared()\n"
    )
    assert rest == "def _shared():\n    return 1\n\n\ndef other():\n    return _shared()\n"


def test_a_public_helper_that_others_import_stays(repository):
    """So that its path, which others use, is still the one."""
    new, rest = split(
        repository,
        "from pkg.base import Backend\n\n\ndef helper():\n    return 1\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return helper()\n" + STAYS,
        user="from pkg.many import helper\n\nhelper()\n",
    )
    assert "from pkg.many import helper\n" in new
    assert rest == "def helper():\n    return 1\n\n\ndef other():\n    return 1\n"


def test_a_logger_is_made_anew(repository):
    """What is made of ``__name__`` is each module's own."""
    new, rest = split(
        repository,
        "import logging\n\nfrom pkg.base import Backend\n\nlogger = logging.getLogger(__name__)\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        logger.debug('x')\n\n\n"
        "def other():\n    logger.debug('y')\n",
    )
    assert new == (
        "import logging\n\nfrom pkg.base import Backend\n\nlogger = logging.getLogger(__name__)\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        logger.debug('x')\n"
    )
    assert rest == ("import logging\n\nlogger = logging.getLogger(__name__)\n\n\ndef other():\n    logger.debug('y')\n")


def test_takes_guarded_imports_and_those_for_type_checkers(repository):
    """Where a class needs what a ``try`` binds, it needs the ``try``."""
    new, rest = split(
        repository,
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\nfrom pkg.base import Backend\n\n"
        "try:\n    import no_such_library\nexcept ImportError:\n    no_such_library = None\n\n"
        "if TYPE_CHECKING:\n    from decimal import Decimal\n    from fractions import Fraction\n\n\n"
        "class SlowBackend(Backend):\n    def run(self) -> Fraction:\n        return no_such_library\n\n\n"
        'def other() -> "Decimal":\n    return 1\n',
    )
    assert new == (
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\nfrom pkg.base import Backend\n\n"
        "try:\n    import no_such_library\nexcept ImportError:\n    no_such_library = None\n\n"
        "if TYPE_CHECKING:\n    from fractions import Fraction\n\n\n"
        "class SlowBackend(Backend):\n    def run(self) -> Fraction:\n        return no_such_library\n"
    )
    assert rest == (
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from decimal import Decimal\n\n\n"
        'def other() -> "Decimal":\n    return 1\n'
    )


def test_what_stays_imports_the_class_that_it_needs(repository):
    """A factory, say."""
    new, rest = split(
        repository,
        '"""Many."""\n\nfrom pkg.base import Backend\nfrom pkg.tools import tool\n\n\n'
        "class SlowBackend(Backend):\n    def run(self):\n        return 1\n\n\n"
        "class Other:\n    kind = SlowBackend\n    tool = tool\n",
    )
    assert (
        new == "from pkg.base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self):\n        return 1\n"
    )
    assert rest == (
        '"""Many."""\n\nfrom pkg.backends.slow import SlowBackend\nfrom pkg.tools import tool\n\n\n'
        "class Other:\n    kind = SlowBackend\n    tool = tool\n"
    )


def test_a_path_that_is_public_stays_public(repository):
    """What ``__all__`` lists is still there, by an import, and a package that exports it does so still."""
    _, rest = split(
        repository,
        '__all__ = ["SlowBackend", "other"]\n\nfrom pkg.base import Backend\n\n\n'
        "class SlowBackend(Backend):\n    def run(self):\n        return 1\n" + STAYS,
        **{"pkg.sub.__init__": "from pkg.many import SlowBackend as SlowBackend\n"},
        user="from pkg.sub import SlowBackend\nfrom pkg.many import *\n\nSlowBackend, other\n",
    )
    assert rest == (
        '__all__ = ["SlowBackend", "other"]\n\nfrom pkg.backends.slow import SlowBackend\n\n\ndef other():\n    return 1\n'  # noqa: E501  as the file says it
    )
    assert repository.files()["pkg/sub/__init__.py"] == "from pkg.backends.slow import SlowBackend as SlowBackend\n"


def test_an_import_that_others_use_stays(repository):
    """Nothing in the module needs it any more, but another module takes it from there."""
    _, rest = split(
        repository,
        "from pkg.base import Backend\nfrom pkg.tools import tool\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return tool()\n" + STAYS,
        user="from pkg.many import tool\n\ntool()\n",
    )
    assert rest.startswith("from pkg.tools import tool\n")


def test_strings_that_patch_what_moved_along_follow_it(repository):
    """What is patched in the old module's namespace is patched in the new one's; where both have it, it is told."""
    source = (
        "from pkg.base import Backend\nfrom pkg.tools import tool\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return tool()\n" + STAYS
    )
    test = 'from unittest import mock\n\nwith mock.patch("pkg.many.tool"):\n    pass\n'
    split(repository, source, test_one=test)
    assert 'mock.patch("pkg.backends.slow.tool")' in repository.files()["test_one.py"]


def test_tells_of_patches_that_may_mean_either_module(repository):
    """Both modules import what is patched."""
    source = (
        "from pkg.base import Backend\nfrom pkg.tools import tool\n\n\n"
        "class SlowBackend(Backend):\n    def run(self):\n        return tool()\n\n\ndef other():\n    return tool()\n"
    )
    test = 'from unittest import mock\n\nwith mock.patch("pkg.many.tool"):\n    pass\n'
    repository.write({"pkg/many.py": source.encode(), "test_one.py": test.encode()})
    repository.commit()
    assert (
        "Left as they are, for you to look at (1):\n"
        "test_one.py:3 names pkg.many.tool, which is there still, but what used it there may have moved\n"
    ) in repository.apply()


def test_relative_imports_inside_the_class_are_changed(repository):
    """Also those in methods, which are seen from the new package."""
    new, _ = split(
        repository,
        "from . import tools\nfrom .base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self):\n"
        "        from .tools import tool\n\n        return tool, tools\n" + STAYS,
    )
    assert new == (
        "from .. import tools\nfrom ..base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self):\n"
        "        from ..tools import tool\n\n        return tool, tools\n"
    )


def test_keeps_the_line_ends_of_the_old_module(repository):
    """In the new one, too."""
    source = (
        "# Licence\n\nfrom pkg.base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self): ...\n" + STAYS
    )
    repository.write({"pkg/many.py": source.replace("\n", "\r\n").encode()})
    repository.commit()
    repository.apply()
    for name in ("backends/slow.py", "many.py"):
        content = (repository.folder / "pkg" / name).read_bytes()
        assert content.count(b"\n") == content.count(b"\r\n") > 2


def test_moves_several_classes_out_of_one_module(repository):
    """Each to a module of its own; one that needs another imports it from there."""
    new, rest = split(
        repository,
        "from pkg.base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self): ...\n\n\n"
        "class SlowerBackend(SlowBackend):\n    pass\n" + STAYS,
    )
    assert new == "from pkg.base import Backend\n\n\nclass SlowBackend(Backend):\n    def run(self): ...\n"
    assert rest == "def other():\n    return 1\n"
    assert repository.files()["pkg/backends/slower.py"] == (
        "from pkg.backends.slow import SlowBackend\n\n\nclass SlowerBackend(SlowBackend):\n    pass\n"
    )
    assert repository.lint().code == 0


def test_what_only_type_checkers_see_is_imported_for_them(repository):
    """From a block that holds more than imports, which stays; one that nothing needs any more goes."""
    new, rest = split(
        repository,
        "from __future__ import annotations\n\nimport typing as t\n\nfrom pkg.base import Backend\n\n"
        "if t.TYPE_CHECKING:\n    import decimal\n\n    class _Proto(t.Protocol): ...\n\n"
        "if t.TYPE_CHECKING:\n    from fractions import Fraction\n    from numbers import Number\n\n\n"
        "class SlowBackend(Backend):\n    def run(self, a: decimal.Decimal = 1, b: _Proto = 2) -> Fraction | Number: ...\n\n\n"  # noqa: E501  as the file says it
        "def other(p: _Proto): ...\n",
    )
    assert new == (
        "from __future__ import annotations\n\nimport typing as t\n\nfrom pkg.base import Backend\n"
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from pkg.many import _Proto, decimal\n\n"
        "if t.TYPE_CHECKING:\n    from fractions import Fraction\n    from numbers import Number\n\n\n"
        "class SlowBackend(Backend):\n    def run(self, a: decimal.Decimal = 1, b: _Proto = 2) -> Fraction | Number: ...\n"  # noqa: E501  as the file says it
    )
    assert rest == (
        "from __future__ import annotations\n\nimport typing as t\n\n"
        "if t.TYPE_CHECKING:\n    import decimal\n\n    class _Proto(t.Protocol): ...\n\n\ndef other(p: _Proto): ...\n"
    )
