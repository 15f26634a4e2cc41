"""The commands of the README and of the workflows, run on a tree in vLLM's layout."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from contracts._ignores import IgnoreField
from contracts.presets import preset_path
from tests.contracts.projects import REPOSITORY, Project

README = (REPOSITORY / "README.md").read_text()
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
LAYER = "vllm/model_executor/layers/fused_moe"

KERNEL = """\
import abc


class FusedMoEPrepareAndFinalize(abc.ABC):
    @abc.abstractmethod
    def prepare(self, a1) -> None: ...


class FusedMoEPrepareAndFinalizeModular(FusedMoEPrepareAndFinalize):
    def prepare_async(self, a1) -> None: ...

    def finalize(self, output) -> None: ...

    def finalize_async(self, output) -> None: ...


class TopKWeightAndReduce(abc.ABC):
    @abc.abstractmethod
    def apply(self, output) -> None: ...


class FusedMoEExperts(abc.ABC):
    @abc.abstractmethod
    def apply(self, output) -> None: ...


class TopKWeightAndReduce(abc.ABC):
    @abc.abstractmethod
    def apply(self, output) -> None: ...
"""
BACKEND = """\
from vllm.model_executor.layers.fused_moe import modular_kernel as mk


class {name}(mk.{base}):
    def {method}(self, {parameter}) -> None: ...
"""
PREPARES = {"base": "FusedMoEPrepareAndFinalizeModular", "method": "prepare", "parameter": "a1"}
APPLIES = {"base": "FusedMoEExperts", "method": "apply", "parameter": "output"}
REDUCES = {**APPLIES, "base": "TopKWeightAndReduce"}
CHAIN = "FusedMoEPrepareAndFinalize (through FusedMoEPrepareAndFinalizeModular)"


def commands(text: str) -> list[str]:
    """The commands of ours in the console blocks of a text, in its order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"moe-contracts|lint-imports", line)]


def shell(project: Project, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, where the commands of this Python are on the path."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return project.run(["bash", "-c", line], env={"PATH": path, "GITHUB_WORKSPACE": ""})


@pytest.fixture
def vllm(empty) -> Project:
    """Give a tree in vLLM's layout, with one backend in the place that 0.19.1 has it in, and misplaced experts."""
    misplaced = BACKEND.format(name="MoriPrepareAndFinalize", **PREPARES)
    files = {
        f"{LAYER}/modular_kernel.py": KERNEL,
        f"{LAYER}/mori_prepare_finalize.py": misplaced.replace("\n\n\nclass", "\n" * 14 + "class"),
        f"{LAYER}/fused_moe.py": BACKEND.format(name="TritonExperts", **APPLIES),
        f"{LAYER}/topk_weight_and_reduce.py": BACKEND.format(name="NoOp", **REDUCES),
        f"{LAYER}/experts/trtllm.py": BACKEND.format(name="TrtLlmExperts", **APPLIES),
        f"{LAYER}/prepare_finalize/batched.py": BACKEND.format(name="BatchedPrepareAndFinalize", **PREPARES),
        f"{LAYER}/prepare_finalize/__init__.py": (
            f"from {LAYER.replace('/', '.')}.prepare_finalize.batched import BatchedPrepareAndFinalize\n\n"
            '__all__ = ["BatchedPrepareAndFinalize"]\n'
        ),
    }
    for old, new in re.findall(r"(vllm[\w.]+) -> (vllm[\w.]+)$", preset_path("vllm").read_text(), re.MULTILINE):
        moved = f"{old.replace('.', '/')}.py" not in files
        if moved and not new.rpartition(".")[2][:1].isupper():  # it is no class of a module that is here already
            files.setdefault(f"{new.replace('.', '/')}.py", "")
    files |= {f"{folder}/check.py": "" for folder in ("benchmarks", "docs", "examples", "tests", "tools")}
    for name in list(files):
        for folder in Path(name).parents:
            if folder != Path():
                files.setdefault(f"{folder}/__init__.py", "")
    empty.write(files)
    return empty


def test_the_commands(vllm):
    """In the README's order, in one shell's folder: every one is understood and finds something to check."""
    lines = commands(README)
    assert any("init" in line for line in lines)
    for line in lines:
        if line.startswith("moe-contracts fix") and not (vllm.folder / ".git").exists():
            commit = "git add -A && git -c user.name=Jo -c user.email=jo@example.org commit -qm x"
            assert shell(vllm, f"git init -q && {commit}").returncode == 0
        done = shell(vllm, line)
        assert done.returncode in {0, 1}, (line, done.stdout)
        words = shlex.split(line)
        if "--output" in words:
            assert (vllm.folder / words[words.index("--output") + 1]).stat().st_size > 0
    config = configparser.ConfigParser()
    config.read_string((vllm.folder / ".importlinter").read_text())
    entries = config["importlinter:contract:experts-placement"]["ignore_definitions"].split("\n")
    triton = f"{LAYER.replace('/', '.')}.fused_moe.TritonExperts"
    assert f"{triton}  # until 2027-03-01: moves with the other experts" in entries


def test_what_it_says_is_found(vllm):
    """The line in the README is what the command above it prints, to the letter."""
    block, *_ = re.findall(r"^```text\n(.*?)\n```$", README, re.DOTALL | re.MULTILINE)
    outcome = shell(vllm, commands(README)[0])
    assert outcome.returncode == 1
    assert block in outcome.stdout.splitlines()
    assert CHAIN in block


def test_the_list():
    """The README's list is read as it says."""
    (block,) = re.findall(r"^```ini\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    config = configparser.ConfigParser()
    config.read_string(f"[x]\n{block}")
    entries = [IgnoreField().parse(line) for line in config["x"]["ignore_definitions"].split("\n") if line]
    assert [(entry.until, entry.reason) for entry in entries] == [
        ("2027-03-01", "moves with the other experts"),
        ("", ""),
    ]


def test_the_hook():
    """The README's hook is one of those that there are."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    ours = {hook["id"] for hook in yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text())}
    used = {hook["id"] for hook in yaml.safe_load(block)[0]["hooks"]}
    assert used <= ours
    assert all(name in block for name in ours)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(path, vllm):
    """They are what GitHub reads, and their commands of ours work and leave the files that later steps name."""
    workflow = yaml.safe_load(path.read_text())
    # YAML 1.1 takes "on" for true.
    assert {"name", True, "permissions", "jobs"} <= workflow.keys()
    shell(vllm, "moe-contracts init --preset vllm && moe-contracts ignore")
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@v\d+", step["uses"])
                for key in ("sarif_file", "path"):
                    if key in step.get("with", {}):
                        assert (vllm.folder / step["with"][key]).stat().st_size > 0
            elif step["run"].startswith("moe-contracts"):
                done = shell(vllm, step["run"])
                assert done.returncode == 0, done.stdout
            elif "--body-file" in step["run"]:
                words = shlex.split(step["run"])
                assert (vllm.folder / words[words.index("--body-file") + 1]).stat().st_size > 0
            else:
                assert step["run"].startswith(("pip install ", "python -m pytest ", ".ci/run")), step["run"]
