"""Starting an environment from a seed as training does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tensordict import TensorDictBase
from torchrl.envs import EnvBase


@pytest.fixture
def restart() -> Callable[[EnvBase, int], TensorDictBase]:
    """``restart(env, seed)`` returns the first observations."""

    def reset(env: EnvBase, seed: int) -> TensorDictBase:
        env.set_seed(seed)
        return env.reset()

    return reset
