"""Speed of learning without replay: `pqn.py`, compared with CleanRL's loop, a minimal loop, our `m_dqn.py`."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

from tests.benchmarks import cartpole
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import GAMMA, PENG, TRACE, Size, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.envs.batched import control_vector_env
from torchrl_reg.modules import NetSettings

ENVS, STEPS, BATCH, EPOCHS = 4, 128, 128, 4
NET = {"layer_norm": "image", "layer_norm_eps": 1e-5, "initialization": "orthogonal"}


def table(frames: int = 20_480) -> Table:
    """Steps/s on CartPole by CleanRL's settings."""
    size = Size(frames, starts=0, every=4, batch=BATCH)
    parts = {"env": EnvSettings("cartpole"), "net": NetSettings(num_cells=[120, 84], **NET)}
    how = {"log_every": 2_048, "num_envs": ENVS, "collect_steps": STEPS, "epochs": EPOCHS, **PENG}
    cases = {
        "CleanRL's loop of pqn.py, written again": lambda: cleanrl_pqn(frames),
        "PQN in as few calls as we know": lambda: least_pqn(frames),
        "recipes/pqn.py": recipe("pqn", parts, size, **how),
        "recipes/pqn.py compiled": recipe("pqn", parts, size, compile=True, **how),
        "recipes/pqn.py, ten seeds together": recipe("pqn", parts, size, seeds=10, **how),
        "recipes/pqn.py compiled, ten seeds together": recipe("pqn", parts, size, seeds=10, compile=True, **how),
        "recipes/m_dqn.py": cartpole.ours(Size(frames // 2, cartpole.STARTS, every=4, batch=32), 8),
    }
    return Table("CartPole, PQN", "steps/s", cases)


def cleanrl_pqn(frames: int) -> float:
    """Steps/s of the loop of CleanRL's ``pqn.py``: four CartPoles, 128 steps, four epochs of four minibatches."""
    envs = SyncVectorEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))] * ENVS)
    q = _network()
    optimizer = torch.optim.RAdam(q.parameters(), lr=2.5e-4)
    observations, actions = torch.zeros(STEPS, ENVS, 4), torch.zeros(STEPS, ENVS, dtype=torch.long)
    rewards, dones, values = (torch.zeros(STEPS, ENVS) for _ in range(3))
    observation, done = torch.Tensor(envs.reset(seed=1)[0]), torch.zeros(ENVS)
    start = time.perf_counter()
    for _ in range(frames // (ENVS * STEPS)):
        for step in range(STEPS):
            observations[step], dones[step] = observation, done
            with torch.no_grad():
                predicted = q(observation)
                values[step], greedy = predicted.max(1)
            explores = torch.rand(ENVS) < 0.1
            actions[step] = torch.where(explores, torch.randint(0, 2, (ENVS,)), greedy)
            following, reward, terminated, truncated, _ = envs.step(actions[step].numpy())
            rewards[step] = torch.as_tensor(reward, dtype=torch.float)
            observation, done = torch.Tensor(following), torch.Tensor(np.logical_or(terminated, truncated))
        returns = _returns(q, observation, done, rewards, dones, values)
        _learn(q, optimizer, observations.flatten(0, 1), actions.flatten(), returns.flatten())
    envs.close()
    return frames / (time.perf_counter() - start)


def _returns(q: nn.Module, last: Tensor, done: Tensor, rewards: Tensor, dones: Tensor, values: Tensor) -> Tensor:
    returns = torch.zeros_like(rewards)
    with torch.no_grad():
        for t in reversed(range(STEPS)):
            if t == STEPS - 1:
                returns[t] = rewards[t] + GAMMA * q(last).max(1).values * (1 - done)
            else:
                mixed = TRACE * returns[t + 1] + (1 - TRACE) * values[t + 1]
                returns[t] = rewards[t] + GAMMA * mixed * (1 - dones[t + 1])
    return returns


def _learn(q: nn.Module, optimizer: torch.optim.Optimizer, o: Tensor, a: Tensor, returns: Tensor) -> None:
    order = np.arange(ENVS * STEPS)
    for _ in range(EPOCHS):
        np.random.shuffle(order)
        for first in range(0, ENVS * STEPS, BATCH):
            rows = order[first : first + BATCH]
            predicted = q(o[rows]).gather(1, a[rows].unsqueeze(-1)).squeeze()
            loss = nn.functional.mse_loss(returns[rows], predicted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(q.parameters(), 10.0)
            optimizer.step()


def least_pqn(frames: int) -> float:
    """Steps/s of PQN in few calls: what no loop of PyTorch's kernels that we know of passes.

    No TensorDict, module, autograd or hook: arrays for the game and the returns, gradients by hand, RAdam's step (all
    of them rectified, as to time) and clipping in one vector.
    """
    parameters = list(_network().parameters())
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    weights = [view.view_as(p) for view, p in zip(flat.split(sizes), parameters, strict=True)]
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    envs = control_vector_env("cartpole", ENVS, max_episode_frames=500)
    observation = envs.reset(seed=1)[0]
    o, values = torch.zeros(STEPS + 1, ENVS, 4), np.zeros((STEPS + 1, ENVS), np.float32)
    rewards, dones = np.zeros((STEPS, ENVS), np.float32), np.zeros((STEPS, ENVS), np.bool_)
    start = time.perf_counter()
    for _ in range(frames // (ENVS * STEPS)):
        explores, actions = (torch.rand(STEPS, ENVS) < 0.1).numpy(), torch.randint(2, (STEPS, ENVS)).numpy()
        for t in range(STEPS + 1):
            o[t] = torch.from_numpy(observation)
            predicted = _forward(weights, o[t])[-1].numpy()
            values[t] = predicted.max(-1)
            if t < STEPS:
                actions[t] = np.where(explores[t], actions[t], predicted.argmax(-1))
                observation, rewards[t], terminated, truncated, _ = envs.step(actions[t])
                if np.count_nonzero(ended := terminated | truncated):
                    observation, _ = envs.reset(options={"reset_mask": ended})
                dones[t] = ended
        later, returns = values[STEPS], np.empty_like(rewards)
        for t in reversed(range(STEPS)):
            mixed = TRACE * later + (1 - TRACE) * values[t + 1]
            returns[t] = later = rewards[t] + GAMMA * ~dones[t] * mixed
        columns = o[:STEPS].flatten(0, 1), torch.from_numpy(actions).flatten(), torch.from_numpy(returns).flatten()
        for _ in range(EPOCHS):
            order = torch.randperm(ENVS * STEPS)
            for rows in zip(*(column[order].split(BATCH) for column in columns), strict=True):
                gradient = torch.cat([each.flatten() for each in hand_gradients(weights, *rows)])
                gradient.mul_(min(1.0, 10.0 / (float(torch.linalg.vector_norm(gradient)) + 1e-6)))
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                flat.addcdiv_(mean, square.sqrt().add_(1e-8), value=-2.5e-4)
    return frames / (time.perf_counter() - start)


def _forward(weights: list[Tensor], x: Tensor) -> list[Tensor]:
    """The inputs of each layer norm, its statistics and output, and the Q-values last."""
    kept = []
    for layer in (0, 4):
        before = nn.functional.linear(x, weights[layer], weights[layer + 1])
        x, mean, rstd = torch.native_layer_norm(before, before.shape[1:], weights[layer + 2], weights[layer + 3], 1e-5)
        kept += [before, mean, rstd, torch.relu_(x)]
    return [*kept, nn.functional.linear(x, weights[8], weights[9])]


def hand_gradients(weights: list[Tensor], o: Tensor, a: Tensor, returns: Tensor) -> list[Tensor]:
    """Gradients of the mean squared error at rows ``[B]``, parameter by parameter."""
    *kept, q = _forward(weights, o)
    index = a.unsqueeze(1)
    grad = torch.zeros_like(q).scatter_(1, index, (q.gather(1, index) - returns.unsqueeze(1)).mul_(2 / len(o)))
    found = [grad.sum(0), grad.t() @ kept[-1]]
    for layer, (before, mean, rstd, after), below in ((4, kept[4:], kept[3]), (0, kept[:4], o)):
        grad = torch.ops.aten.threshold_backward(grad @ weights[layer + 4], after, 0)
        scale, shift = weights[layer + 2], weights[layer + 3]
        normed = before.shape[1:], mean, rstd, scale, shift, [True] * 3
        grad, scale, shift = torch.ops.aten.native_layer_norm_backward(grad, before, *normed)
        found += [shift, scale, grad.sum(0), grad.t() @ below]
    return found[::-1]


def _network() -> nn.Sequential:
    layers = [nn.Linear(4, 120), nn.LayerNorm(120), nn.ReLU(), nn.Linear(120, 84), nn.LayerNorm(84), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(84, 2))


if __name__ == "__main__":
    main(table)
