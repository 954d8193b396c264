"""An ask-and-tell sweeper, like Hydra's Optuna sweeper, that records the objective of each trial in ``TOLD``."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

TOLD: list[tuple[list[str], float]] = []


class AskTell(Sweeper):
    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        parts = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.launcher = Plugins.instance().instantiate_launcher(**parts)

    def sweep(self, arguments: list[str]) -> None:
        parsed = OverridesParser.create().parse_overrides(arguments)
        for trial, share in enumerate((0.25, 0.75)):
            asked = []
            for each in parsed:
                value: Any = each.value()
                is_interval = each.is_interval_sweep()
                found = value.start + share * (value.end - value.start) if is_interval else each.get_value_string()
                asked.append(f"{each.get_key_element()}={found}")
            (job,) = self.launcher.launch([asked], initial_job_idx=trial)
            TOLD.append((asked, float(job.return_value)))


ConfigStore.instance().store(group="hydra/sweeper", name="ask_tell", node={"_target_": f"{__name__}.AskTell"})
