"""One episode of a policy, frame by frame, with Q-values, entropy and return beside the game."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp
from torchrl.modules import EGreedyModule

from torchrl_reg.lab.agents.pictures import (
    STEPS_PER_SECOND,
    Camera,
    Picture,
    action_names,
    camera,
    draw_without_display,
)
from torchrl_reg.lab.agents.saved import SavedPolicy
from torchrl_reg.lab.errors import UserError
from torchrl_reg.modules import BoltzmannQActor, PriorEGreedyModule

WIDTH = 260  # pixels of the panel
_MARGIN, _LINE, _NAME, _VALUE = 12, 19, 85, 52
_INK, _FAINT, _PAPER, _CHOSEN, _OTHER = (40, 40, 45), (120, 120, 125), (250, 250, 247), (215, 95, 30), (120, 160, 190)
_MAX_ACTIONS_SHOWN = 18  # actions shown


@dataclass(frozen=True)
class Moment:
    """A state and what the policy makes of it.

    Args:
        picture: uint8 ``[H, W, 3]``.
        step: steps taken before.
        reward_so_far: undiscounted, in reward units.
        q: action values ``[A]``; None of a continuous policy, and of the last state.
        action: the chosen action: an index, or ``[D]`` numbers; None of the last state.
        entropy: of the policy that samples, nats; None where it has none in closed form.
        largest_entropy: ``ln A``; None of a density.
    """

    picture: Picture
    step: int
    reward_so_far: float
    q: Tensor | None = None
    action: Tensor | None = None
    entropy: float | None = None
    largest_entropy: float | None = None


# A line of the panel, with a bar from ``start`` to ``end`` (shares of the width) if it has a ``value``.
_Row = namedtuple("_Row", ["text", "ink", "start", "end", "value", "colour"], defaults=[_INK, 0.0, 0.0, "", _CHOSEN])


class Panel:
    """Draws moments of one episode.

    Args:
        title: the first line.
        actions: name of each discrete action.
        q_range: Q-values of an empty and of a full bar.

    Raises:
        UserError: Pillow is not installed.
    """

    def __init__(self, title: str, actions: tuple[str, ...], q_range: tuple[float, float] = (0.0, 1.0)) -> None:
        try:
            from PIL import ImageFont
        except ImportError:
            raise UserError("play needs Pillow, got none: pip install 'torchrl_reg[play]'.") from None
        self._title, self._actions, self._q_range = title, actions, q_range
        self._font = ImageFont.load_default(size=13)

    def frame(self, moment: Moment) -> Picture:
        """The picture with the panel to its right; height and width are even, as MP4 requires."""
        from PIL import Image, ImageDraw

        height, width = moment.picture.shape[:2]
        image = Image.new("RGB", (_even(width + WIDTH), _even(max(height, 280))), _PAPER)
        image.paste(Image.fromarray(moment.picture), (0, 0))
        pen = ImageDraw.Draw(image)
        left, y, span = width + _MARGIN, _MARGIN, WIDTH - 2 * _MARGIN - _NAME - _VALUE
        for row in self._rows(moment):
            pen.text((left, y), row.text, font=self._font, fill=row.ink)
            if row.value:
                bar = left + _NAME + row.start * span, left + _NAME + row.end * span + 1
                pen.rectangle((bar[0], y + 3, bar[1], y + _LINE - 4), fill=row.colour)
                pen.text((left + _NAME + span + 6, y), row.value, font=self._font, fill=_INK)
            y += _LINE if row.text else _LINE // 2
        return np.asarray(image)

    def _rows(self, moment: Moment) -> Iterator[_Row]:
        yield _Row(self._title)
        yield _Row(f"step {moment.step}   return {moment.reward_so_far:.4g}", _FAINT)
        if moment.entropy is not None:
            of = "" if moment.largest_entropy is None else f" of {moment.largest_entropy:.2f}"
            yield _Row(f"policy entropy {moment.entropy:.3f}{of} nats", _FAINT)
        yield _Row("")
        if moment.action is None:
            yield _Row("the end")
        elif moment.q is not None:
            yield from self._q_values(moment.q, int(moment.action))
        else:
            yield _Row("action")
            for index, value in enumerate(moment.action.reshape(-1).tolist()[:_MAX_ACTIONS_SHOWN]):
                at = 0.5 + 0.5 * float(np.clip(value, -1, 1))
                yield _Row(str(index), _CHOSEN, min(at, 0.5), max(at, 0.5), f"{value:.3g}")

    def _q_values(self, q: Tensor, chosen: int) -> Iterator[_Row]:
        low, high = self._q_range
        yield _Row("q(s, a)")
        for index, value in enumerate(q.tolist()[:_MAX_ACTIONS_SHOWN]):
            share = float(np.clip((value - low) / max(high - low, 1e-9), 0, 1))
            ink, colour = (_CHOSEN, _CHOSEN) if index == chosen else (_INK, _OTHER)
            yield _Row(self._actions[index][:12], ink, 0.0, share, f"{value:.3g}", colour)


def _even(pixels: int) -> int:
    return pixels + pixels % 2


def frames_per_second(saved: SavedPolicy) -> int:
    """Environment steps shown in a second."""
    return STEPS_PER_SECOND.get(saved.env_settings.name, 30)


def episode_frames(
    saved: SavedPolicy,
    *,
    seed: int,
    mode: str = "greedy",
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Picture]:
    """One frame uint8 ``[H, W, 3]`` of every state of an episode, the last included: its steps + 1.

    Args:
        saved: the policy; its weights must be on ``device``.
        seed: of the episode, and of a policy that samples.
        mode: ``"greedy"`` or ``"sampled"``.
        max_steps: end of an episode that is still going on.
        device: where the policy computes.

    Raises:
        UserError: the environment cannot be built or drawn here.
    """
    draw_without_display()
    settings, env = saved.env_settings, saved.make_env(1)
    picture, actions = camera(settings, env), action_names(settings, env)
    kind = ExplorationType.RANDOM if mode == "sampled" else ExplorationType.DETERMINISTIC
    options: dict[str, Any] = {"seed": seed, "kind": kind, "max_steps": max_steps, "device": device}
    # Played once without pictures, for the range of its Q-values: kept, the pictures of a long game fill the memory.
    torch.manual_seed(seed)
    blind = played(env, saved.policy, lambda state: np.zeros((0, 0, 3), np.uint8), **options) if actions else ()
    ranges = [(moment.q.min().item(), moment.q.max().item()) for moment in blind if moment.q is not None]
    lows, highs = zip(*ranges, strict=True) if ranges else ((0.0,), (1.0,))
    panel = Panel("/".join(filter(None, (settings.name, settings.game, mode))), actions, (min(lows), max(highs)))
    torch.manual_seed(seed)
    yield from map(panel.frame, played(env, saved.policy, picture, **options))
    env.close()


@torch.no_grad()
def played(
    env: EnvBase,
    policy: Any,
    camera: Camera,
    *,
    seed: int,
    kind: ExplorationType = ExplorationType.DETERMINISTIC,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Moment]:
    """Every state of one episode of ``env``, a single environment, the last one included.

    ``max_steps`` ends it early. Stochastic policies draw from torch's global generator.
    """
    env.set_seed(seed)
    state = env.reset()
    total, step, is_over = 0.0, 0, False
    while not is_over:
        with set_exploration_type(kind):
            acted = policy(state.to(device)).to("cpu")
        yield Moment(camera(acted), step, total, *_choice(policy, acted))
        taken = env.step(acted)  # without a reset: an environment that draws itself shows its last state
        total += taken["next", "reward"].item()
        step += 1
        is_over = taken["next", "done"].any() or step == max_steps
        state = step_mdp(taken)
    yield Moment(camera(taken["next"]), step, total)


def _choice(policy: nn.Module, acted: TensorDictBase) -> tuple[Tensor | None, Tensor, float | None, float | None]:
    """Action values, the action, the entropy and the largest one."""
    if "action_value" not in set(acted.keys()):
        return None, acted["action"][0], _density_entropy(policy, acted), None
    q = acted["action_value"][0]
    entropy = torch.special.entr(action_probabilities(policy, acted)).sum(-1).item()
    return q, acted["action"][0], entropy, math.log(len(q))


def action_probabilities(policy: nn.Module, acted: TensorDictBase) -> Tensor:
    """``pi(.|s) [A]`` of the sampling policy in the first row of what ``policy`` has just written.

    ``softmax(q / tau)``, ``rho exp(beta q)``, or epsilon-greedy (around rho, where it explores from a prior).
    """
    q = acted["action_value"][0].cpu().double()
    for module in policy.modules():
        if isinstance(module, BoltzmannQActor):
            return module.regularizer.policy(q.to(acted["action_value"].device)).cpu()
        if isinstance(module, EGreedyModule):
            return _epsilon_greedy(module, q, acted)
    return nn.functional.one_hot(q.argmax(-1), len(q)).double()


def _epsilon_greedy(module: EGreedyModule, q: Tensor, acted: TensorDictBase) -> Tensor:
    rho = torch.full_like(q, 1 / len(q))
    greedy = q.argmax(-1)
    if isinstance(module, PriorEGreedyModule):
        log_prior = module.prior.log_prior.cpu()
        if module.log_prior_key is not None:
            log_prior = module.prior.floored(acted[module.log_prior_key][0].cpu())
        rho = torch.softmax(log_prior.double(), -1)
        greedy = (q + log_prior / module.prior.beta.cpu()).argmax(-1)
    eps = module.eps.cpu().double()
    return eps * rho + (1 - eps) * nn.functional.one_hot(greedy, len(q))


def _density_entropy(policy: Any, acted: TensorDictBase) -> float | None:
    try:
        return policy.get_dist(acted.to(next(policy.parameters()).device)).entropy()[0].item()
    except (NotImplementedError, AttributeError):
        return None
