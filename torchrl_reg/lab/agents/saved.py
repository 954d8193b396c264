"""Saved policies: one file with the description of the modules, their weights, and facts about the run."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.settings import check_imported
from torchrl_reg.lab.agents.description import (
    Undescribed,
    Untrusted,
    check_actions,
    describe,
    limit_parameter_bytes,
    modules_of,
    rebuild,
    spaces_of,
    trusted_module,
)
from torchrl_reg.lab.agents.trained import trained_agents
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable
from torchrl_reg.modules.rebuilding import Spaces

_SCALE = ".scale"
_MIN_QUANTIZED = 4_096  # elements of a tensor; smaller ones stay as they are


def quantize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with large matrices ``w [N, ...]`` as int8 ``round(w / s)``, with ``s [N] = max|w_n| / 127``."""
    small: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or tensor.numel() < _MIN_QUANTIZED or not tensor.is_floating_point():
            small[name] = tensor
            continue
        rows = tensor.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 127
        levels = torch.where(scale > 0, rows / scale, 0.0).round()
        small |= {name: levels.to(torch.int8).reshape(tensor.shape), name + _SCALE: scale.squeeze(1)}
    return small


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`quantize`: ``int8 * s [N, 1, ...]``; other tensors are unchanged."""
    scales = {name: tensor for name, tensor in tensors.items() if _is_scale(name, tensors)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in scales}
    for name, scale in scales.items():
        levels = weights[name.removesuffix(_SCALE)]
        weights[name.removesuffix(_SCALE)] = levels * scale.reshape(-1, *[1] * (levels.dim() - 1))
    return weights


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    levels = tensors.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
    return levels is not None and levels.dtype == torch.int8


#: File name in run folders and exported folders.
POLICY_FILE = "policy.safetensors"
_FORMAT = "torchrl_reg policy 2"
_MAX_FILE_BYTES = 1 << 30  # the largest networks of the recipes take 30 MB


@dataclass(frozen=True)
class SavedPolicy:
    """A loaded policy.

    Args:
        path: its file.
        policy: a TensorDict actor, greedy under ``ExplorationType.DETERMINISTIC`` and sampled under ``RANDOM``.
        facts: the record of its run: ``env`` (settings), ``run`` (seed, evaluation episodes, threads) and
            ``evaluation`` (the row of ``metrics.jsonl`` at which it was saved); empty for :func:`save_policy`.
        spaces: observation and action spaces for which it was built.
        trust: modules that the file was allowed to import.
    """

    path: Path
    policy: nn.Module
    facts: dict[str, Any]
    spaces: Spaces
    trust: tuple[str, ...] = ()

    @property
    def env_settings(self) -> EnvSettings:
        """The settings of the environment that the policy was evaluated in.

        Raises:
            UserError: no environment in the file, or not one of this package.
        """
        if "env" not in self.facts:
            raise UserError(f"{self.path} must name the environment of its policy, got none.")
        try:
            settings = EnvSettings(**self.facts["env"])
            hash(settings.name)  # JSON lists and objects are no names
            return settings
        except TypeError:
            raise UserError(f"{self.path} must name an environment of torchrl_reg, got {self.facts['env']}.") from None

    def make_env(self, num_envs: int) -> EnvBase:
        """The environment of the policy, with ``num_envs`` copies, on the CPU.

        Raises:
            UserError: an environment that is unknown, cannot be built on this machine, or has other spaces.
        """
        try:
            check_imported(self.env_settings)
            env = make_env(self.env_settings, num_envs)
        except ValueError as error:
            raise UserError(str(error)) from None
        expected, got = (_shapes(spaces) for spaces in (Spaces.from_env(env), self.spaces))
        if expected != got:
            name = self.env_settings.name
            raise UserError(f"{self.path} must hold a policy for {name}, which has {expected}, got one for {got}.")
        return env


def policy_bytes(policies: Mapping[str, Any], facts: Mapping[str, Any], *, small: bool = False) -> bytes:
    """The content of a policy file for the module of all ``policies`` (by evaluation mode), with JSON ``facts``.

    Args:
        policies: by evaluation mode.
        facts: see :class:`SavedPolicy`.
        small: round large matrices to 8 bits.

    Raises:
        Undescribed: a module that could not be rebuilt from the file.
        UserError: weights that are not finite.
    """
    policy = outermost_module(policies)
    description = describe(policy)
    state = policy.state_dict()
    try:
        rebuilt = rebuild(description, trust=modules_of(description))
    except ValueError as error:
        raise Undescribed(str(error).removesuffix(".")) from None
    expected = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in state.items()}
    # Other buffers are used in training only, such as the running error that adapts a temperature.
    for name in set(shapes) - set(expected) - {name for name, _ in policy.named_parameters()}:
        del shapes[name], state[name]
    if shapes != expected:
        raise Undescribed(f"the description of {type(policy).__name__} gives other weights")
    check_finite(state, "policy")
    state = quantize(state) if small else state
    content = {"policy": description, "facts": dict(facts)}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    without_metadata = encode(state, {})
    length = int.from_bytes(without_metadata[:8], "little")
    digest = hashlib.sha256(text.encode() + without_metadata[8 + length :]).hexdigest()
    return encode(state, {"format": _FORMAT, "content": text, "sha256": digest})


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with ``tensors`` (of any device) and ``metadata``, the same in every process."""
    # Cloned, because safetensors refuses tensors that share memory.
    cloned = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    content = _safetensors().save(cloned, dict(metadata))
    if len(metadata) < 2:
        return content
    # The order of metadata differs between processes; sorting them keeps the length and so the offsets.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], memoryview]:
    """Tensors on the CPU, metadata, and raw bytes of the tensors of a safetensors file; executes no code from it.

    Raises:
        UserError: a file that is unreadable, too large or damaged.
    """
    package = _safetensors()
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise UserError(f"{path} must be at most {_MAX_FILE_BYTES >> 30} GiB, got {size:,} bytes.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from None
    try:
        tensors = package.load(content)
    except Exception as error:  # SafetensorError, or a dtype that this torch does not have
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or no safetensors file: {reason}.") from None
    end = 8 + int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8:end]).get("__metadata__", {}), memoryview(content)[end:]


def _safetensors() -> ModuleType:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise UserError("A saved policy needs safetensors, got none: pip install 'torchrl_reg[recipes]'.") from None


def save_policy(
    path: Path | str, policy: nn.Module, facts: Mapping[str, Any] | None = None, *, small: bool = False
) -> None:
    """Writes ``policy`` to the file ``path``, for :func:`load_policy`.

    Networks from the builders of :mod:`torchrl_reg.modules` (``q_network``, ``quantile_network``, ``policy``), actors
    around them and any :class:`~torchrl_reg.regularizers.Regularizer`, also a user's, can be saved.

    Args:
        path: the file.
        policy: the actor.
        facts: JSON to store with it.
        small: round large matrices to 8 bits, with errors up to 1/254 of the largest weight in a row; the file takes a
            quarter of the size.

    Raises:
        UserError: other modules in it, or weights that are not finite.
    """
    try:
        content = policy_bytes({"policy": policy}, facts or {}, small=small)
    except Undescribed as error:
        raise UserError(f"policy must be made of this package's networks and actors, got {error}.") from None
    Path(path).write_bytes(content)


def check_finite(state: Mapping[str, Any], owner: str) -> None:
    """Checks a ``state_dict`` for NaN and infinite numbers.

    Raises:
        UserError: there is one; the message names its tensor.
    """
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
            value = tensor[~tensor.isfinite()][0].item()
            raise UserError(f"{owner} must have finite weights, got {value} in {name}.")


def read_policy(
    run_folder: Path | str, *, device: torch.device | str = "cpu", trust: Collection[str] = ()
) -> SavedPolicy:
    """The policy of a run folder, an exported folder, a file or a trained agent, with its facts.

    Args:
        run_folder: a path, or the name of a trained agent, such as ``"m_dqn/cartpole"``, if no such path exists.
        device: device of the weights.
        trust: modules with the user's classes that the file may import, see :func:`load_policy`.

    Raises:
        UserError: no policy, or one that is damaged, not finite, of another run, or of another version.
    """
    trust = _import_trusted(trust)
    path = _policy_file(run_folder)
    tensors, metadata, data = read(path)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} must be of format {_FORMAT!r}, got {metadata.get('format')!r}.")
    text = metadata.get("content", "")
    if hashlib.sha256(text.encode() + data).hexdigest() != metadata.get("sha256"):
        raise UserError(f"{path} is damaged: its checksum does not fit its content.")
    try:
        content = json.loads(text)
        facts = _check_facts(content["facts"])
        weights = dequantize(tensors)
        with limit_parameter_bytes(sum(weight.nbytes for weight in weights.values())):
            policy: nn.Module = rebuild(content["policy"], trust=trust)
        spaces = spaces_of(policy)
        check_actions(content["policy"], spaces)
        policy.load_state_dict(weights)
    except Untrusted as error:
        raise UserError(f"{path} {error}.") from None
    except Exception as error:  # untrusted content can raise any exception
        reason = " ".join(str(error).split())[:200].removesuffix(".") or type(error).__name__
        reason = f"no {error}" if isinstance(error, KeyError) else reason
        raise UserError(f"{path} cannot be built by this version of torchrl_reg: {printable(reason)}.") from None
    _check_owner(path, facts)
    check_finite(weights, str(path))
    return SavedPolicy(path, policy.to(device).requires_grad_(False).eval(), facts, spaces, trust)


def _import_trusted(trust: Collection[str]) -> tuple[str, ...]:
    """Imports the modules ``trust``, which may also register the environment of the policy."""
    names = () if isinstance(trust, str) else tuple(trust)
    if isinstance(trust, str) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"trust must be a list of modules, such as ['my_module'], got {trust!r}.")
    for name in names:
        try:
            trusted_module(name, names)
        except Untrusted as error:
            raise UserError(f"trust {error}.") from None
    return names


def _policy_file(location: Path | str) -> Path:
    """The policy file of a folder, a file, or the name of an agent (a string; ``./a/b`` is always a path)."""
    folder = Path(location)
    try:
        exists = folder.exists()
        path = folder / POLICY_FILE if folder.is_dir() else folder
        if not exists and isinstance(location, str):
            path = trained_agents().get(location, path)
        if path.is_file():
            return path
    except OSError as error:  # a name too long, a folder without permission
        shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}..."
        raise UserError(f"{shown} could not be read: {error.strerror}.") from None
    or_name = "" if exists or not isinstance(location, str) else ", or the name of a trained agent (`torchrl-reg list`)"
    expected = f"a run folder or an exported one, with a {POLICY_FILE} in it"
    near = difflib.get_close_matches(str(location), trained_agents(), n=1) if or_name else []
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(f"{folder} must be {expected}{or_name}, got none{hint}")


def _check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts``, after checks of the types that the package relies on."""
    for name in ("env", "run", "evaluation"):
        if not isinstance(facts.get(name, {}), dict):
            raise ValueError(f"facts.{name} must be an object, got {facts[name]!r}")
    for name, value in facts.get("run", {}).items():
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"facts.run.{name} must be an integer, got {value!r}")
    return facts


def load_policy(run_folder: Path | str, *, device: torch.device | str = "cpu", trust: Collection[str] = ()) -> Any:
    """The trained policy of a run as a TensorDict actor in eval mode, without gradients; nothing is unpickled.

    It acts as its run evaluated it: greedily inside ``set_exploration_type(ExplorationType.DETERMINISTIC)``, and, like
    every actor of TorchRL, sampling under ``RANDOM`` and by default. Needs neither Hydra nor the environment.

    Args:
        run_folder: a run folder, an exported folder, a file ``policy.safetensors``, or the name of a trained agent in
            the package, such as ``"m_dqn/minatar/breakout"``; ``torchrl-reg list`` shows them.
        device: device of the weights.
        trust: modules with your own classes, such as ``["my_module"]``, in the working directory or on ``PYTHONPATH``.
            Importing a module runs its code, so no other module named in the file is imported.

    Raises:
        UserError: no policy, or one that is damaged, not finite, or of another run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tensordict import TensorDict
        >>> from torchrl_reg.envs import EnvSettings, make_env
        >>> from torchrl_reg.modules import NetSettings, QActor, q_network
        >>> env = make_env(EnvSettings("cartpole"), num_envs=1)
        >>> spec = env.full_action_spec_unbatched["action"]
        >>> file = Path(tempfile.mkdtemp()) / "policy.safetensors"
        >>> save_policy(file, QActor(q_network(NetSettings(), env), spec=spec))
        >>> load_policy(file)(TensorDict({"observation": torch.zeros(8, 4)}, [8]))["action"].shape
        torch.Size([8])
    """
    return read_policy(run_folder, device=device, trust=trust).policy


def outermost_module(policies: Mapping[str, Any]) -> nn.Module:
    """The policy of ``policies`` that contains all others.

    Raises:
        Undescribed: there is none.
    """
    for candidate in policies.values():
        if isinstance(candidate, nn.Module):
            submodules = {id(module) for module in candidate.modules()}
            if all(id(policy) in submodules for policy in policies.values()):
                return candidate
    raise Undescribed("no single module in what is evaluated: " + ", ".join(policies))


def _check_owner(path: Path, facts: Mapping[str, Any]) -> None:
    """Raises a UserError if ``facts`` disagree with the last evaluation of the finished run in the same folder."""
    done = path.parent / "done.json"
    if not done.is_file() or not done.stat().st_size or "evaluation" not in facts:
        return
    try:
        last = dict(json.loads(done.read_text())["evaluation"] or {})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{done} must hold the last evaluation of a finished run, got something else.") from None
    for name, saved in facts["evaluation"].items():
        final = last.get(name)
        # A return that was not finite is None in the policy's file and can be NaN in the run's.
        if final != saved and not (saved is None and final != final):
            raise UserError(f"{path} belongs to another run than {done}: {name} is {saved} there and {final} here.")


def _shapes(spaces: Spaces) -> str:
    shape, _ = spaces.observations.get("observation", ([], ""))
    actions = f"{len(spaces.low)} action dimensions" if spaces.num_actions is None else f"{spaces.num_actions} actions"
    return f"observations {list(shape)} and {actions}"
