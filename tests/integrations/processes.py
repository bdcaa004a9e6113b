"""Other processes: those that run cases together (`python -m tests.integrations.processes`), and one that is killed."""

from __future__ import annotations

import datetime
import faulthandler
import importlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MESSAGE = 20  # seconds that a process waits for the others
_ROOT = Path(__file__).parents[2]


def run(module: str, names: list[str], folder: Path, *, count: int = 2, patience: float = 300) -> dict[str, str]:
    """Call functions of a module in several processes at once, one after the other.

    Args:
        module: its full name.
        names: of the functions.
        folder: an empty one, for the results.
        count: the number of processes, in one gloo group.
        patience: seconds for all.

    Returns:
        For each function, "" where it returned in all processes, or what went wrong.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "PYTHONFAULTHANDLER": "1"}
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", "tests.integrations.processes", module, str(folder), str(patience), *names]
    children = []
    for rank in range(count):
        with (folder / f"output{rank}").open("w") as output:
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            child = subprocess.Popen(command, env=environment | numbers, cwd=_ROOT, stdout=output, stderr=output)
        children.append(child)
    try:
        for child in children:
            child.wait(patience + 30)
    finally:
        for child in children:
            child.kill()
    found = [_read(folder, rank) for rank in range(count)]
    outputs = "\n".join((folder / f"output{rank}").read_text()[-2000:] for rank in range(count))
    missing = f"not reached; the processes printed:\n{outputs}"
    return {name: "\n".join(filter(None, (results.get(name, missing) for results in found))) for name in names}


def killed(command: list[str], seen: Callable[[], Any], *, times: int = 3, patience: float = 120) -> None:
    """Start a process again and again, kill it soon after it has saved something, and let it end at last.

    Args:
        command: which goes on with what was saved.
        seen: gives something else after every time that something was saved.
        times: how often it is killed.
        patience: seconds for the process to save something, and to end.
    """
    for _ in range(times):
        before = seen()
        child = subprocess.Popen(command, cwd=_ROOT)
        end = time.monotonic() + patience
        while time.monotonic() < end and child.poll() is None and seen() == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        running = child.poll() is None
        child.kill()
        child.wait()
        assert running, f"it ended by itself, with {child.returncode}"
        assert seen() != before, "it has saved nothing"
    subprocess.run(command, cwd=_ROOT, check=True, timeout=patience)


def _read(folder: Path, rank: int) -> dict[str, str]:
    file = folder / f"results{rank}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def main(module: str, folder: str, patience: str, *names: str) -> None:
    """What one process does."""
    import torch
    from torch import distributed

    faulthandler.dump_traceback_later(float(patience), exit=True)
    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=_MESSAGE),
    )
    cases: Any = importlib.import_module(module)
    results: dict[str, str] = {}
    for name in names:
        try:
            getattr(cases, name)()
            distributed.barrier()
            results[name] = ""
        except BaseException:
            results[name] = f"process {rank}:\n{traceback.format_exc()}"
        (Path(folder) / f"results{rank}.json").write_text(json.dumps(results))
        if results[name]:  # then the others wait in vain for its messages
            break
    sys.stdout.flush()
    os._exit(0)  # nothing waits for a process that has failed


if __name__ == "__main__":
    main(*sys.argv[1:])
