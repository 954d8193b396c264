"""Settings shared by all recipes, and the base class of their configs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torchrl_reg.lab.errors import require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

COLLECTORS = ("fast", "torchrl")
LOGGERS = ("tensorboard", "wandb")
ON_NAN = ("stop", "continue")
#: Settings that change only the output or (device, threads) the last digits. A run may resume with others, and names of
#: folders and rows of results leave them out.
WITHOUT_EFFECT = frozenset(
    {
        *("run.dir", "run.seeds", "run.loggers", "run.progress", "run.on_nan", "run.video_every_frames"),
        *("run.log_every_frames", "run.device", "run.threads"),
    }
)
#: Environments stepped together: building millions of them would take hours before anything fails.
MAX_ENVS = 100_000
#: CPU threads: torch kills the process without a message where the system allows fewer.
MAX_THREADS = 1_024


@dataclass
class RunSettings:
    """Settings of a run that do not depend on the method.

    Frames are environment frames, frame skip included. Checkpoints do not affect the run unless the state of an
    environment cannot be restored: then they end all episodes, and the run announces it at its start.
    """

    dir: str | None = None  # folder of the run; null: results/<recipe>/<env>/<settings>/seed=<seed>
    seed: int = 0  # of networks, exploration, replay sampling and environments
    seeds: list[int] | None = None  # several runs in one process with batched updates, each in its own folder
    device: str = "auto"  # "auto" is cuda if available
    threads: int = 1  # CPU threads of torch; more are slower on small networks or busy machines
    compile: bool | None = None  # the whole update as one compiled graph; null: where that pays off
    bf16: bool = False  # updates: networks compute in bfloat16, targets and parameters stay float32
    cudagraphs: bool = False  # the whole gradient step as one CUDA graph
    overlap: bool = False  # collects a batch while learning from the previous one; the acting policy is one batch older
    collector: str = "fast"  # steps vector environments directly, with identical results; torchrl: TorchRL's Collector
    diagnostics_every_updates: int = 10  # diagnostics are computed on every n-th update only
    log_every_frames: int = 1_000  # a training row of metrics.jsonl
    evaluate_every_frames: int = 10_000  # and at the end
    eval_episodes: int = 10  # of each policy that is evaluated
    checkpoint_every_frames: int | None = None  # null: 10,000, at most once a minute; 50,000 where it ends episodes
    video_every_frames: int | None = None  # after each, the next evaluation records a greedy episode; null: never
    loggers: list[str] = field(default_factory=list)  # extra views: tensorboard, wandb
    on_nan: str = "stop"  # stop or continue, when the loss, a gradient or a parameter is not finite at a log row
    progress: bool = True  # a progress line on a terminal; plain lines elsewhere

    def validate(self) -> None:
        """Raises ``UserError`` for values out of range."""
        require(self.dir != "", "run.dir", "a folder, or null for one named after the settings", self.dir)
        require(self.seed >= 0, "run.seed", "at least 0", self.seed)
        seeds = self.seeds or [0]
        distinct = self.seeds != [] and min(seeds) >= 0 and len(set(seeds)) == len(seeds)
        require(distinct, "run.seeds", "different integers, each at least 0", self.seeds)
        require(not (self.seeds and self.cudagraphs), "run.cudagraphs", "false with run.seeds", self.cudagraphs)
        others = self.seeds or self.cudagraphs
        require(not (others and self.overlap), "run.overlap", "false with run.seeds or run.cudagraphs", self.overlap)
        intervals = ("log_every_frames", "evaluate_every_frames")
        for name in ("threads", "diagnostics_every_updates", *intervals):
            require(getattr(self, name) >= 1, f"run.{name}", "at least 1", getattr(self, name))
        for name in ("checkpoint_every_frames", "video_every_frames"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"run.{name}", "at least 1, or null", value)
        require(self.threads <= MAX_THREADS, "run.threads", f"at most {MAX_THREADS:,}", self.threads)
        evaluable = 1 <= self.eval_episodes <= MAX_ENVS  # side by side
        require(evaluable, "run.eval_episodes", f"from 1 to {MAX_ENVS:,}", self.eval_episodes)
        require(self.on_nan in ON_NAN, "run.on_nan", f"one of {', '.join(ON_NAN)}", self.on_nan)
        require(self.collector in COLLECTORS, "run.collector", f"one of {', '.join(COLLECTORS)}", self.collector)
        for logger in self.loggers:
            require(logger in LOGGERS, "run.loggers", f"a list of values from {list(LOGGERS)}", logger)


@dataclass
class RecipeConfig:
    """Base of a recipe's config; the recipe adds ``algo`` and may type ``env`` and ``net``.

    ``defaults`` is Hydra's defaults list after ``_self_``: a group is a folder of ``conf/``, and later entries override
    earlier ones, so ``env`` comes after ``net``: an environment may set its network.
    ``paper_needs`` lists groups of which a paper's preset needs one: without it the default method would run.
    ``objective`` is the column of the last evaluation that Hydra's sweepers optimize.
    """

    defaults: ClassVar[list[Any]] = [{"net": "mlp"}, {"env": "cartpole"}]
    paper_needs: ClassVar[tuple[str, ...]] = ()
    objective: ClassVar[str] = "return_greedy_mean"

    run: RunSettings = field(default_factory=RunSettings)


def validate(config: DataclassInstance) -> None:
    """Rejects inf and nan anywhere, then calls ``validate()`` of every dataclass that has it, outermost first.

    Raises:
        UserError: a setting is out of range.
    """
    for name, value in _numbers(config, ""):
        require(math.isfinite(value), name, "a finite number", value)
        require(isinstance(value, float) or abs(value) < 2**63, name, "an integer below 2^63", value)
    _validate(config)


def _validate(config: DataclassInstance) -> None:
    if hasattr(config, "validate"):
        config.validate()
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _validate(value)


def _numbers(node: object, name: str) -> Iterator[tuple[str, float]]:
    """The numbers in ``node`` with their dotted names."""
    if isinstance(node, int | float):
        yield name, node
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _numbers(item, f"{name}[{index}]")
    elif isinstance(node, dict) or dataclasses.is_dataclass(node):
        for key, item in node.items() if isinstance(node, dict) else vars(node).items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
