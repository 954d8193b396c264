"""A recipe without torch for the tests of sweeps: frames are naps, a checkpoint is a number, rows depend on the seed.

It keeps to a run folder: ``config.yaml``, ``metrics.jsonl`` cut to the checkpoint on resume, ``done.json``.
``starts.txt`` has the frame at which each of its processes began, ``terminated`` is written on SIGTERM.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

KNOWN = {"frames": 20, "seconds": 0.05, "checkpoint_every": 5, "fails_for_seed": -1, "deaf": 0}


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        return check(json.load(sys.stdin))
    given = dict(text.lstrip("+").split("=", 1) for text in sys.argv[1:])
    settings = {name: float(given.get(f"algo.{name}", value)) for name, value in KNOWN.items()}
    folder = Path(given["run.dir"].strip("'").replace("\\", ""))
    if "run.seeds" in given:
        for seed in json.loads(given["run.seeds"]):
            run(folder / f"seed={seed}", seed, settings)
    else:
        run(folder, int(given["run.seed"]), settings)


def check(runs: list[list[str]]) -> None:
    for text in (text for overrides in runs for text in overrides):
        key = text.partition("=")[0]
        if key.startswith("algo.") and key[5:] not in KNOWN:
            sys.exit(f"{key} is not a setting.")


def run(folder: Path, seed: int, settings: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    on_sigterm = signal.SIG_IGN if settings["deaf"] else lambda *_: ((folder / "terminated").touch(), sys.exit(143))
    signal.signal(signal.SIGTERM, on_sigterm)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    checkpoint, metrics = folder / "checkpoint", folder / "metrics.jsonl"
    (folder / "config.yaml").write_text(f"algo:\n  total_frames: {settings['frames']:.0f}\n")
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    kept = metrics.read_text().splitlines()[:first] if metrics.exists() else []
    metrics.write_text("".join(line + "\n" for line in kept))
    with (folder / "starts.txt").open("a") as file:
        file.write(f"{first} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')} {os.environ['OMP_NUM_THREADS']}\n")
    for frame in range(first, int(settings["frames"])):
        time.sleep(settings["seconds"])
        if frame == 3 and seed == settings["fails_for_seed"]:
            raise ZeroDivisionError("this seed was made to fail")
        row = {"event": "train", "frames": frame + 1, "return_mean": (seed + 1) * (frame * 7919 % 97), "fps": 20.0}
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if (frame + 1) % settings["checkpoint_every"] == 0:
            partial = folder / "checkpoint.partial"
            partial.write_text(str(frame + 1))
            partial.replace(checkpoint)
    (folder / "done.json").write_text(json.dumps({"frames": int(settings["frames"])}))


if __name__ == "__main__":
    main()
