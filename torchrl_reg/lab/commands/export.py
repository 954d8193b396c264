"""``torchrl-reg export``: a trained policy as a self-contained folder to share."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchrl_reg
from torchrl_reg.lab.analysis.runs import RunRecord, is_number, metrics_rows, read_run
from torchrl_reg.lab.analysis.tables import markdown_text
from torchrl_reg.lab.commands.evaluate import add_trust
from torchrl_reg.lab.documents import flat
from torchrl_reg.lab.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``RUN``, ``--trust`` and ``DIR``."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run")
    add_trust(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder")


def run(arguments: argparse.Namespace) -> int:
    """Writes weights (safetensors), ``config.yaml``, a README with the scores, and the licence.

    Raises:
        UserError: RUN is not a run folder, or DIR is not empty.
        UserError: RUN has no policy, or a damaged one.
    """
    from torchrl_reg.lab.agents.saved import read_policy

    folder: Path = arguments.folder
    saved = read_policy(arguments.run_folder, trust=arguments.trust)
    if not (arguments.run_folder / "config.yaml").is_file():
        raise UserError(f"RUN must be a run folder, which holds a config.yaml, got {arguments.run_folder}.")
    # The facts stored with the policy: reading config.yaml would need PyYAML.
    record = read_run(arguments.run_folder, flat({"env": saved.facts.get("env"), "run": saved.facts.get("run")}))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DIR must be a new or empty folder, got {folder}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"DIR={folder} cannot be created: {error.strerror}.") from None
    shutil.copyfile(saved.path, folder / saved.path.name)
    shutil.copyfile(arguments.run_folder / "config.yaml", folder / "config.yaml")
    (folder / "README.md").write_text(_readme(record, saved.facts), encoding="utf-8")
    (folder / "LICENSE").write_text(_licence(), encoding="utf-8")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _readme(record: RunRecord, facts: dict[str, Any]) -> str:
    row = facts.get("evaluation", {})
    frames = f"{row['frames']:,} environment frames" if isinstance(row.get("frames"), int) else "an unknown time"
    versions = record.starts[-1].get("versions", {}) if record.starts else {}
    versions = versions if isinstance(versions, dict) else {}
    built = [f"{name} {versions[name]}" for name in ("torch", "torchrl", "gymnasium") if name in versions]
    commits = markdown_text(", ".join(record.short_commits) or "unknown")
    command = record.command.replace("`", "'")
    env = json.dumps(facts.get("env", {})).replace("`", "'")
    return f"""# {markdown_text(record.recipe)} on {markdown_text(record.env)}

A policy of torchrl_reg {torchrl_reg.__version__}, trained for {frames} with seed {record.seed}.

```python
from torchrl_reg import load_policy

policy = load_policy("path/to/this/folder")  # a TensorDict actor, by safetensors: nothing is unpickled
```

| policy | mean return | standard deviation | episodes | seed of the episodes |
|---|---|---|---|---|
{chr(10).join(_scores(record, row, facts))}

Environment: `{env}`.
Trained by `{command}` at commit {commits}{" with " * bool(built)}{", ".join(built)}.
All settings are in `config.yaml`. Licence: MIT, see `LICENSE`.
"""


def _scores(record: RunRecord, row: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
    evaluations = [{"seed": facts.get("run", {}).get("seed"), **row}]
    evaluations += [each for each in metrics_rows(record.path, '"evaluate"') if each["event"] == "evaluate"]
    for each in evaluations:
        for mode in ("greedy", "sampled"):
            mean, spread = each.get(f"return_{mode}_mean"), each.get(f"return_{mode}_std")
            if is_number(mean) and is_number(spread):
                yield f"| {mode} | {mean:.6g} | {spread:.4g} | {each.get('episodes', '')} | {each.get('seed', '')} |"


def _licence() -> str:
    """The package's licence, from the installed distribution or the checkout."""
    try:
        text = importlib.metadata.distribution("torchrl_reg").read_text("licenses/LICENSE")
    except importlib.metadata.PackageNotFoundError:
        text = None
    beside = Path(torchrl_reg.__file__).parents[1] / "LICENSE"
    return text or (beside.read_text(encoding="utf-8") if beside.is_file() else "SPDX-License-Identifier: MIT\n")
