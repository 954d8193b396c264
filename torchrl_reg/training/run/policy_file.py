"""The evaluated policy in the run folder, for whoever uses it afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchrl_reg.agents.description import Undescribed
from torchrl_reg.agents.saved import POLICY_FILE, policy_bytes
from torchrl_reg.training.files import write_atomically
from torchrl_reg.training.loop.evaluation import Policy
from torchrl_reg.training.run.metrics import json_row, strip_wall_clock


class PolicyFile:
    """Keeps ``policy.safetensors`` of a run at its last evaluation; see :func:`torchrl_reg.load_policy`.

    Args:
        folder: of the run.
        config: the recipe's; its ``env`` and ``run`` are stored for whoever evaluates the policy again.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self._path = folder / POLICY_FILE
        self._refused = False
        run = config.run
        self._facts = {"run": {"seed": run.seed, "eval_episodes": run.eval_episodes, "threads": run.threads}}
        env = getattr(config, "env", None)
        if dataclasses.is_dataclass(env) and not isinstance(env, type):
            self._facts["env"] = dataclasses.asdict(env)

    def write(
        self, policies: Mapping[str, Policy], evaluation: Mapping[str, Any], say: Callable[[str], None] = print
    ) -> None:
        """Writes the file; says once if the policies are of a kind that could not be loaded."""
        if self._refused:
            return
        facts = {**self._facts, "evaluation": json_row(strip_wall_clock(evaluation))}
        try:
            write_atomically(self._path, policy_bytes(policies, facts))
        except Undescribed as error:
            self._refused = True
            say(f"policy not saved: {error}, so evaluate, play and export will not work for this run")
