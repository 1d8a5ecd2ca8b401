"""Run by test_kills.py in a process of its own: trains, is killed, resumes, and prints what it found as JSON.

Every run is a fork of this process, in which everything is imported and the model is built, so that one takes about a second.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # here, so that no fork has to

import dehvf_kit
from dehvf_kit.adapter.files import WEIGHTS, read_weights
from dehvf_kit.model.builder import build
from dehvf_kit.training.checkpoints import checkpoints, fault
from dehvf_kit.training.run import train
from dehvf_kit.utils.atomic import UNFINISHED


def forked(work: Callable[[], Any]) -> int:
    """A child that does the work and exits with 0; 1 and a traceback where it fails."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # renews the thread pool of the fork before several threads can find it gone
        work()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def finished(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def saving(folder: Path, what: str) -> bool:
    """Whether something whose name ends in `what` is being written or taken away."""
    names = (name for _, folders, files in os.walk(folder) for name in [*folders, *files])
    return any(name.startswith(UNFINISHED) and name.endswith(what) for name in names)


def unreadable(folder: Path) -> list[str]:
    """Checkpoints that cannot be read to the last byte."""
    found = []
    for place in checkpoints(folder / "checkpoints"):
        try:
            assert fault(place) is None, fault(place)
            read_weights(place)
            for name in ("optimizer.pt", "scheduler.pt"):
                torch.load(place / name, weights_only=True)
            json.loads((place / "trainer_state.json").read_text())
        except Exception as error:
            found.append(f"{place.name}: {error}")
    return found


def main(recipe_file: str, root: str, kills: int, *overrides: str) -> None:
    torch.set_num_threads(1)
    recipe = dehvf_kit.load_recipe(recipe_file, overrides)
    model = build(recipe)
    moments = random.Random(0)
    gc.collect()
    gc.freeze()

    def run(folder: Path, resume: bool) -> int:
        return forked(lambda: train(recipe, folder, model, resume=resume))

    whole = Path(root) / "whole"
    began = time.perf_counter()
    assert finished(run(whole, False)) == 0
    seconds = time.perf_counter() - began
    wanted = (whole / "adapter" / WEIGHTS).read_bytes()
    rows = []
    for number in range(kills):
        folder, killed, span = Path(root) / f"run{number}", False, seconds
        while not killed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            began = time.perf_counter()
            child = run(folder, False)
            moment = span * (number + moments.random()) / kills
            while not ended(child) and time.perf_counter() - began < moment:
                time.sleep(0.001)
            # One kill in three at whatever is going on, one inside a save, and one inside the last, where there is time left.
            what = (None, "", "adapter")[number % 3]
            while what is not None and not ended(child) and not saving(folder, what):
                time.sleep(0.001)
            time.sleep(0.02 * moments.random() if what is not None else 0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed = finished(child) == -signal.SIGKILL
            span *= 0.9  # it was done before: the machine has become faster, and the next try comes sooner
        inside = saving(folder, "")
        steps = [place.name for place in checkpoints(folder / "checkpoints")]
        damaged = unreadable(folder)
        status = finished(run(folder, True))
        same = status == 0 and (folder / "adapter" / WEIGHTS).read_bytes() == wanted
        left = [str(path) for path in folder.rglob(f"{UNFINISHED}*")]
        rows.append(
            {"inside_a_save": inside, "checkpoints": steps, "unreadable": damaged, "status": status, "same": same, "left": left}
        )
    print(json.dumps({"seconds": seconds, "runs": rows}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
