"""Numbers for exact claims of the sources, on random tables: ``python -m recipes.studies.exact ROWS.jsonl``.

Twenty random problems with 6 states, 4 actions and gamma .9; takes seconds.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.maximum_entropy import ACTIONS, GAMMA, STATES, annealing, improvement, normal
from recipes.theory import TAUS, gamble
from torchrl_reg import tabular
from torchrl_reg.functional import policy_entropy
from torchrl_reg.lab.analysis.claims import BET
from torchrl_reg.tabular import TabularMDP, random_mdp

PROBLEMS, TAU = 20, 0.5


def problems() -> list[TabularMDP]:
    return [random_mdp(STATES, ACTIONS, GAMMA, seed=seed) for seed in range(PROBLEMS)]


def policies_differ(alpha: float) -> float:
    """Largest difference between the policies of Munchausen and mirror-descent value iteration, over 60 iterates."""
    largest = 0.0
    for seed, mdp in enumerate(problems()):
        q0 = 2 * normal(STATES, ACTIONS, seed=seed)
        one = tabular.munchausen_value_iteration(
            mdp, TAU, alpha, q0=q0, num_iterations=60, return_iterates=True
        ).iterates
        shifted = q0 + alpha * TAU * math.log(ACTIONS)
        other = tabular.mirror_descent_value_iteration(
            mdp, alpha * TAU, (1 - alpha) * TAU, q0=shifted, num_iterations=60, return_iterates=True
        ).iterates
        largest = max(largest, *((a.pi - b.pi).abs().max().item() for a, b in zip(one, other, strict=True)))
    return largest


def gap_factor(alpha: float) -> float:
    """Ratio of the action gaps at the fixed points with and without the Munchausen term, of the same policy."""
    factors = []
    for mdp in problems():
        soft = tabular.soft_value_iteration(mdp, TAU).q
        wide = tabular.munchausen_value_iteration(mdp, TAU / (1 - alpha), alpha).q
        factors.append(_gaps(wide).sum() / _gaps(soft).sum())
    return float(torch.stack(factors).mean())


def _gaps(q: Tensor) -> Tensor:
    return q.amax(-1, keepdim=True) - q


def contraction() -> float:
    """Largest ratio of distances after and before a soft backup, over pairs of random tables."""
    largest = 0.0
    for seed, mdp in enumerate(problems()):
        one, other = (3 * normal(STATES, ACTIONS, seed=2 * seed + i) for i in (0, 1))
        after = [mdp.backup(TAU * torch.logsumexp(q / TAU, -1)) for q in (one, other)]
        largest = max(largest, ((after[0] - after[1]).abs().max() / (one - other).abs().max()).item())
    return largest


def entropy_at(scale: float) -> float:
    """Mean entropy of the soft-optimal policy over ln A, with rewards scaled by ``scale`` at a fixed temperature."""
    scaled = [TabularMDP(mdp.P, scale * mdp.r, GAMMA) for mdp in problems()]
    found = [policy_entropy(tabular.soft_value_iteration(mdp, TAU).pi).mean() for mdp in scaled]
    return float(torch.stack(found).mean()) / math.log(ACTIONS)


def numbers() -> list[dict[str, Any]]:
    rows = [
        {
            "claim": "munchausen_is_kl",
            "measure": "largest difference of a probability",
            "at": alpha,
            "value": policies_differ(alpha),
        }
        for alpha in (0.3, 0.9)
    ]
    for alpha in (0.5, 0.9):
        claimed = (1 + alpha) / (1 - alpha)
        rows.append(
            {
                "claim": "action_gap",
                "measure": "factor of the gaps",
                "at": alpha,
                "value": gap_factor(alpha),
                "claimed": claimed,
            }
        )
    rows.append(
        {"claim": "soft_q_iteration", "measure": "largest ratio of distances", "value": contraction(), "claimed": GAMMA}
    )
    gains, _ = improvement(PROBLEMS, TAU)
    rows.append(
        {"claim": "soft_q_iteration", "measure": "smallest gain of a soft-greedy step", "value": gains.min().item()}
    )
    for scale in (0.1, 1.0, 10.0):
        rows.append({"claim": "reward_scale", "measure": "entropy over ln A", "at": scale, "value": entropy_at(scale)})
    _, entropies, _ = annealing(PROBLEMS, 0.1)
    rows.append(
        {"claim": "reward_scale", "measure": "VIREL's entropy in the end", "value": entropies[:, -1].max().item()}
    )
    for tau in TAUS:
        bet = tabular.optimality_messages(gamble(0.5), tau, 2, believe_in_luck=True).pi[0, 0, 1].item()
        rows.append({"claim": "reward_scale", "measure": BET, "at": tau, "value": bet})
    return rows


def main(path: Path) -> None:
    found = [
        {"study": "exact", "problems": PROBLEMS, **row, "value": float(f"{row['value']:.4g}")} for row in numbers()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
