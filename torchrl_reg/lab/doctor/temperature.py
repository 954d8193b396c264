"""Whether tau suits the rewards of a run: the policy's entropy as a share of its maximum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torchrl_reg.envs import EnvError, EnvSettings, make_env
from torchrl_reg.envs.settings import check_imported
from torchrl_reg.lab.doctor.machine import Finding
from torchrl_reg.lab.doctor.records import numbers_in, read_rows

#: Shares of the largest entropy from which on a policy counts as uniform, and up to which as greedy.
UNIFORM_SHARE, GREEDY_SHARE = 0.95, 0.001
_BINNED = ("multicategorical", "autoregressive")


def temperature_finding(folder: Path, config: dict[str, Any]) -> Finding:
    """Start, middle and end of ``entropy / ln A`` in the rows of the run in ``folder`` with ``config``, judged.

    ``A`` is the number of actions; over bins ``ln A`` is ``D ln K``, for ``D`` dimensions of ``K`` bins.
    """
    name = "tau"
    rows = [row for row in read_rows(folder) if row["event"] == "train"]
    entropies = numbers_in(rows, "entropy")
    if not rows:
        return Finding(name, "warn", "no training row yet", "ask again later")
    if not entropies:
        return Finding(name, "ok", "this method reports no entropy: nothing to judge")
    try:
        largest, symbol = largest_entropy(config)
    except EnvError as error:
        return Finding(name, "warn", f"the environment cannot be built here: {error}")
    tau, gap = (next(reversed(numbers_in(rows, column)), None) for column in ("tau", "action_gap"))
    at = (entropies[0], entropies[len(entropies) // 2], entropies[-1])
    if largest is None:
        numbers = ", ".join(f"{value:.3g}" for value in at)
        return Finding(name, "ok", f"entropy {numbers} nats (start, middle, end), of {symbol}: no largest to compare")
    shares = [value / largest for value in at]
    numbers = ", ".join(f"{share:.1%}" for share in shares)
    shown = "unknown" if tau is None else f"{tau:.3g}"
    detail = f"entropy is {numbers} of {symbol} = {largest:.3g} (start, middle, end), tau={shown}"
    if gap is not None and tau:
        detail += f", action gap / tau = {gap / tau:.3g}"
    todo = ""
    if shares[-1] >= UNIFORM_SHARE:
        why = f"tau={shown} is too large for these rewards, or nothing was learnt yet"
        todo = f"the policy is uniform: {why}; divide tau by 10, or scale rewards up"
    elif shares[-1] <= GREEDY_SHARE:
        why = f"tau={shown} is negligible against these rewards"
        todo = f"the policy is greedy: {why}; multiply it by 10 for a regularized policy"
    return Finding.judged(name, detail, todo)


def largest_entropy(config: dict[str, Any]) -> tuple[float | None, str]:
    """Entropy of the uniform policy of a run's ``config`` and how it is written; None where actions are a density.

    Raises:
        EnvError: the environment cannot be built here.

    >>> largest_entropy({"env": {"name": "cartpole"}})
    (0.6931471805599453, 'ln 2')
    >>> largest_entropy({"env": {"name": "pendulum"}, "policy": {"name": "gaussian"}})
    (None, 'a gaussian density')
    """
    policy = config.get("policy") or {}
    kind = str(policy.get("name", ""))
    if policy and kind not in _BINNED:
        return None, f"a {kind} density"
    settings = EnvSettings(**config["env"])
    check_imported(settings)
    env = make_env(settings, num_envs=1)
    try:
        spec = env.full_action_spec_unbatched["action"]
    finally:
        env.close()
    if not policy:
        return math.log(spec.space.n), f"ln {spec.space.n}"
    dimensions, bins = math.prod(spec.shape), int(policy["num_bins"])
    return dimensions * math.log(bins), f"{dimensions} ln {bins}"
