"""``moe-contracts fix`` on packages that others wrote: after the move of a class, every module is imported as before.

    python -m tests.contracts.test_fix_packages PACKAGE ...

tries it with every class of some installed packages that other modules of them import, one after the other, and
prints what came of each.
"""

import ast
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.contracts.fixing import Repository, git

# Each is imported by other modules of its package.
CLASSES = [
    "jinja2.exceptions.UndefinedError",
    "jinja2.loaders.PrefixLoader",
    "jinja2.sandbox.SandboxedEnvironment",
    "jinja2.utils.LRUCache",
    "jsonschema.exceptions.SchemaError",
    "jsonschema.exceptions.ErrorTree",
    "referencing.exceptions.Unresolvable",
]
IMPORT_ALL = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
package = importlib.import_module(sys.argv[1])
for module in sorted(m.name for m in pkgutil.walk_packages(package.__path__, sys.argv[1] + ".", lambda name: None)):
    if not module.endswith("__main__"):
        try:
            importlib.import_module(module)
        except BaseException as error:
            print(module, type(error).__name__)
        else:
            print(module, "imported")
"""


def copy_of(package: str, folder: Path) -> Repository:
    """A repository with a copy of an installed package, and an empty package ``moved`` in it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.submodule_search_locations, f"{package} is no package"
    (source,) = spec.submodule_search_locations
    shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    repository = Repository(folder)
    repository.write({f"{package}/moved/__init__.py": ""})
    repository.commit()
    return repository


def imported(repository: Repository, package: str) -> dict[str, str]:
    """What became of importing each module, in a process of its own."""
    command = [sys.executable, "-c", IMPORT_ALL, package]
    done = repository.run(command, path=[repository.folder], env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stdout
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(f"{package}."))


def move(repository: Repository, name: str) -> str:
    """Move a class into the package ``moved``; gives what the command says where it refuses, or else nothing."""
    package = name.partition(".")[0]
    module, _, own = name.rpartition(".")
    repository.configure([{"type": "forbidden_definitions", "modules": [module], "names": [own]}], roots=[package])
    repository.commit()
    result = repository.fix("--apply", "--to", f"{package}.moved")
    assert result.code in {0, 2}, result.out
    assert result.code == 0 or not git(repository.folder, "status", "--porcelain")
    return result.err if result.code else ""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", CLASSES)
def test_every_module_is_imported_as_before(tmp_path, name):
    """And the second run finds nothing to move."""
    package = name.partition(".")[0]
    repository = copy_of(package, tmp_path)
    before = imported(repository, package)
    assert move(repository, name) == ""
    after = imported(repository, package)
    # The module itself, if it moved whole, is another one now.
    gone = {module for module in before if module not in after}
    assert gone <= {name.rpartition(".")[0]}
    assert {module: after[module] for module in before.keys() - gone} == {
        module: before[module] for module in before.keys() - gone
    }
    assert {how for module, how in after.items() if module.startswith(f"{package}.moved.")} == {"imported"}
    repository.commit()
    assert repository.apply("--to", f"{package}.moved") == "Nothing to mend.\n"


def candidates(package: str, folder: Path) -> list[str]:
    """The classes at the top of modules that another module imports by name."""
    defined, used = [], set()
    for path in sorted((folder / package).rglob("*.py")):
        relative = path.relative_to(folder).with_suffix("")
        module = ".".join(relative.parts).removesuffix(".__init__")
        tree = ast.parse(path.read_bytes())
        defined += [f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)]
        used |= {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    return [name for name in defined if name.rpartition(".")[2] in used]


def main(packages: list[str]) -> None:
    """Try every class."""
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            repository = copy_of(package, Path(folder))
            before = imported(repository, package)
            start = git(repository.folder, "rev-parse", "HEAD").strip()
            for name in candidates(package, Path(folder)):
                try:
                    said = move(repository, name)
                    after = imported(repository, package)
                except AssertionError as error:
                    print("FAILED", name, str(error)[:2000])
                else:
                    worse = {m: how for m, how in after.items() if before.get(m, "imported") != how}
                    print("WORSE" if worse else "refused" if said else "moved", name, worse or said.strip(), flush=True)
                git(repository.folder, "reset", "-q", "--hard", start)
                git(repository.folder, "clean", "-fdq")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main(sys.argv[1:])
