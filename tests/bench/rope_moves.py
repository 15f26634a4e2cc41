"""The three moves of ``tests.bench.fix`` with rope, timed for comparison: run with a Python that has rope.

    python tests/bench/rope_moves.py TREE

rope wants the new module of a class to exist, moves a module under its old name and renames it then.
"""

import sys
import time
from pathlib import PurePosixPath

from rope.base.project import Project
from rope.refactor.move import create_move
from rope.refactor.rename import Rename

FOLDER = PurePosixPath("vllm/model_executor/layers/fused_moe")
PLACE = FOLDER / "prepare_finalize"


def main(tree: str) -> None:
    """Make the moves, and print how long they took."""
    started = time.perf_counter()
    project = Project(tree, ropefolder=None)
    for old, new in (("mori_prepare_finalize", "mori"), ("nixl_ep_prepare_finalize", "nixl_ep")):
        module = project.get_resource(str(FOLDER / f"{old}.py"))
        project.do(create_move(project, module).get_changes(project.get_resource(str(PLACE))))
        moved = project.get_resource(str(PLACE / f"{old}.py"))
        project.do(Rename(project, moved, None).get_changes(new))
    project.get_resource(str(PLACE)).create_file("batched.py")
    module = project.get_resource(str(FOLDER / "fused_batched_moe.py"))
    offset = module.read().index("class BatchedPrepareAndFinalize") + len("class ")
    new = project.get_resource(str(PLACE / "batched.py"))
    project.do(create_move(project, module, offset).get_changes(new))
    project.close()
    print(f"{time.perf_counter() - started:.1f} {time.process_time():.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
