"""Saved policies, one file each: how to make it, its weights, its scores; and those that come with the package."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.settings import check_imported
from torchrl_reg.lab.agents.description import (
    Undescribed,
    Untrusted,
    built,
    check_actions,
    described,
    modules_of,
    spaces_of,
    trusted_module,
    weights_of_at_most,
)
from torchrl_reg.lab.agents.trained import trained_agents
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable
from torchrl_reg.modules.rebuilding import Spaces

_SCALE = ".scale"
_LEAST = 4_096  # numbers of a tensor that is worth it


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with large matrices ``w [N, ...]`` as int8 ``round(w / s)`` and ``s [N] = max|w_n| / 127`` beside."""
    small: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or tensor.numel() < _LEAST or not tensor.is_floating_point():
            small[name] = tensor
            continue
        rows = tensor.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 127
        levels = torch.where(scale > 0, rows / scale, 0.0).round()
        small |= {name: levels.to(torch.int8).reshape(tensor.shape), name + _SCALE: scale.squeeze(1)}
    return small


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights ``int8 * s [N, 1, ...]`` of :func:`packed`; anything else as it is."""
    scales = {name: tensor for name, tensor in tensors.items() if _is_scale(name, tensors)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in scales}
    for name, scale in scales.items():
        levels = weights[name.removesuffix(_SCALE)]
        weights[name.removesuffix(_SCALE)] = levels * scale.reshape(-1, *[1] * (levels.dim() - 1))
    return weights


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    levels = tensors.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
    return levels is not None and levels.dtype == torch.int8


#: The file in a run folder, and in an exported one.
POLICY_FILE = "policy.safetensors"
_FORMAT = "torchrl_reg policy 2"
_LARGEST = 1 << 30  # bytes of a file that is read; the largest networks of the recipes take 30 million


@dataclass(frozen=True)
class SavedPolicy:
    """A policy read back.

    Args:
        path: its file.
        policy: the TensorDict actor: greedy under ``ExplorationType.DETERMINISTIC``, sampled under ``RANDOM``.
        facts: what its run recorded: ``env`` (settings), ``run`` (seed, evaluation episodes, threads) and
            ``evaluation`` (the row of ``metrics.jsonl`` it was saved at); none if it comes from :func:`save_policy`.
        spaces: the observations and actions it was built for.
        trust: modules that the file may name.
    """

    path: Path
    policy: Any
    facts: dict[str, Any]
    spaces: Spaces
    trust: tuple[str, ...] = ()

    @property
    def env_settings(self) -> EnvSettings:
        """The settings of the environment that the policy was evaluated in.

        Raises:
            UserError: the file does not say.
        """
        if "env" not in self.facts:
            raise UserError(f"{self.path} must say which environment its policy acts in, got none.")
        try:
            settings = EnvSettings(**self.facts["env"])
            hash(settings.name)  # a list or an object in its place is none
            return settings
        except TypeError:
            raise UserError(f"{self.path} must name an environment of torchrl_reg, got {self.facts['env']}.") from None

    def make_env(self, num_envs: int) -> EnvBase:
        """``num_envs`` of these environments on the CPU.

        Raises:
            UserError: it is not known, cannot be built on this machine, or is not what the policy was built for.
        """
        try:
            check_imported(self.env_settings)
            env = make_env(self.env_settings, num_envs)
        except ValueError as error:
            raise UserError(str(error)) from None
        there, here = (_shapes(spaces) for spaces in (Spaces.of(env), self.spaces))
        if there != here:
            name = self.env_settings.name
            raise UserError(f"{self.path} must hold a policy for {name}, which has {there}, got one for {here}.")
        return env


def policy_bytes(policies: Mapping[str, Any], facts: Mapping[str, Any], *, small: bool = False) -> bytes:
    """The file of the one policy behind all of ``policies`` (by evaluation mode), with JSON ``facts``.

    Where ``small``, large matrices are rounded to 8 bits.

    Raises:
        Undescribed: a module that could not be built again; the message says which.
        UserError: weights that are not finite.
    """
    policy = whole(policies)
    description = described(policy)
    state = policy.state_dict()
    try:
        again = built(description, trust=modules_of(description))
    except ValueError as error:
        raise Undescribed(str(error).removesuffix(".")) from None
    acts = {name: tensor.shape for name, tensor in again.state_dict().items()}
    here = {name: tensor.shape for name, tensor in state.items()}
    # Buffers beyond those are of use in training alone, such as the running error that adapts a temperature.
    for name in set(here) - set(acts) - {name for name, _ in policy.named_parameters()}:
        del here[name], state[name]
    if acts != here:
        raise Undescribed(f"the description of {type(policy).__name__} gives other weights")
    check_finite(state, "policy")
    state = packed(state) if small else state
    said = {"policy": description, "facts": dict(facts)}
    text = json.dumps(said, sort_keys=True, allow_nan=False)
    plain = encoded(state, {})
    length = int.from_bytes(plain[:8], "little")
    digest = hashlib.sha256(text.encode() + plain[8 + length :]).hexdigest()
    return encoded(state, {"format": _FORMAT, "content": text, "sha256": digest})


def encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with ``tensors`` (any device) and string ``metadata``."""
    # Cloned: the package refuses tensors that share memory.
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    content = _safetensors().save(plain, dict(metadata))
    if len(metadata) < 2:
        return content
    # The package writes metadata in an order that changes from process to process; the same length keeps the offsets.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], memoryview]:
    """Tensors on the CPU, metadata, and the raw bytes of the tensors; reading a safetensors file executes nothing.

    Raises:
        UserError: it cannot be read, is too large, or damaged.
    """
    package = _safetensors()
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise UserError(f"{path} must be at most {_LARGEST >> 30} GiB, got {size:,} bytes.")
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


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise UserError("A saved policy needs safetensors, got none: pip install 'torchrl_reg[recipes]'.") from None


def save_policy(
    path: Path | str, policy: nn.Module, facts: Mapping[str, Any] | None = None, *, small: bool = False
) -> None:
    """Writes ``policy`` to the file ``path``, so that :func:`load_policy` reads it.

    Where ``small``, a quarter of the size: large matrices are rounded to 8 bits, by 1/254 of a row's largest weight.

    Networks from :mod:`torchrl_reg.modules`' builders (``q_network``, ``quantile_network``, ``policy``) with the actors
    on top of them can be saved, and any :class:`~torchrl_reg.regularizers.Regularizer`, also of one's own.

    Raises:
        UserError: another module is in it, or its weights are not finite.
    """
    try:
        content = policy_bytes({"policy": policy}, facts or {}, small=small)
    except Undescribed as error:
        raise UserError(f"policy must be made of this package's networks and actors, got {error}.") from None
    Path(path).write_bytes(content)


def check_finite(state: Mapping[str, Any], whose: str) -> None:
    """Refuses a ``state_dict`` with NaN or an infinite number in it.

    Raises:
        UserError: there is one; the sentence names it.
    """
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
            value = tensor[~tensor.isfinite()][0].item()
            raise UserError(f"{whose} must have finite weights, got {value} in {name}.")


def read_policy(
    run_folder: Path | str, *, device: torch.device | str = "cpu", trust: Collection[str] = ()
) -> SavedPolicy:
    """The policy in a run folder, an exported folder, a file, or of a trained agent's name, with what is known of it.

    Args:
        run_folder: a string such as ``"m_dqn/cartpole"`` is the name of an agent where no such folder is.
        device: where the weights go.
        trust: modules that the policy may name, of one's own classes; others are not imported, see :func:`load_policy`.

    Raises:
        UserError: there is none, it is damaged, not finite or another run's, or this version cannot build it.
    """
    trust = _imported(trust)
    path = _policy_file(run_folder)
    tensors, metadata, data = read(path)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} must be of format {_FORMAT!r}, got {metadata.get('format')!r}.")
    text = metadata.get("content", "")
    if hashlib.sha256(text.encode() + data).hexdigest() != metadata.get("sha256"):
        raise UserError(f"{path} is damaged: its checksum does not fit its content.")
    try:
        said = json.loads(text)
        facts = _checked_facts(said["facts"])
        weights = unpacked(tensors)
        with weights_of_at_most(sum(weight.nbytes for weight in weights.values())):
            policy = built(said["policy"], trust=trust)
        spaces = spaces_of(policy)
        check_actions(said["policy"], spaces)
        policy.load_state_dict(weights)
    except Untrusted as error:
        raise UserError(f"{path} {error}.") from None
    except Exception as error:  # whatever the content makes of the code that reads it
        reason = " ".join(str(error).split())[:200].removesuffix(".") or type(error).__name__
        reason = f"no {error}" if isinstance(error, KeyError) else reason
        raise UserError(f"{path} cannot be built by this version of torchrl_reg: {printable(reason)}.") from None
    _check_owner(path, facts)
    check_finite(weights, str(path))
    return SavedPolicy(path, policy.to(device).requires_grad_(False).eval(), facts, spaces, trust)


def _imported(trust: Any) -> tuple[str, ...]:
    """The modules in ``trust``; they may also register the environment of the policy."""
    named = () if isinstance(trust, str) else tuple(trust)
    if isinstance(trust, str) or not all(isinstance(name, str) and name for name in named):
        raise UserError(f"trust must be a list of modules, such as ['my_module'], got {trust!r}.")
    for name in named:
        try:
            trusted_module(name, named)
        except Untrusted as error:
            raise UserError(f"trust {error}.") from None
    return named


def _policy_file(written: Path | str) -> Path:
    """The file that is meant by a folder, a file, or a name, which only a string can be: ``./a/b`` is a path."""
    folder = Path(written)
    try:
        exists = folder.exists()
        path = folder / POLICY_FILE if folder.is_dir() else folder
        if not exists and isinstance(written, str):
            path = trained_agents().get(written, path)
        if path.is_file():
            return path
    except OSError as error:  # a name too long, a folder that may not be entered
        shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}..."
        raise UserError(f"{shown} could not be read: {error.strerror}.") from None
    or_name = "" if exists or not isinstance(written, str) else ", or the name of a trained agent (`torchrl-reg list`)"
    meant = f"a run folder or an exported one, with a {POLICY_FILE} in it"
    near = difflib.get_close_matches(str(written), trained_agents(), n=1) if or_name else []
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(f"{folder} must be {meant}{or_name}, got none{hint}")


def _checked_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` if they are of the form in which runs write them."""
    for name in ("env", "run", "evaluation"):
        if not isinstance(facts.get(name, {}), dict):
            raise ValueError(f"facts.{name} must be an object, got {facts[name]!r}")
    for name, value in facts.get("run", {}).items():
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"facts.run.{name} must be an integer, got {value!r}")
    return facts


def load_policy(run_folder: Path | str, *, device: torch.device | str = "cpu", trust: Collection[str] = ()) -> Any:
    """The trained policy of a run as a TensorDict actor on ``device``, frozen; nothing is unpickled.

    It acts as its run evaluated it: greedily inside ``set_exploration_type(ExplorationType.DETERMINISTIC)``, and, as
    every actor of TorchRL, sampling under ``RANDOM`` and where nothing is set. Needs neither Hydra nor the environment.

    Args:
        run_folder: of a run, an exported one, the file ``policy.safetensors`` itself, or the name of an agent that
            comes with the package, such as ``"m_dqn/minatar/breakout"``; ``torchrl-reg list`` shows them.
        device: where the weights go.
        trust: modules of your own classes in it, such as ``["my_module"]``, in the working directory or on
            ``PYTHONPATH``. A folder may come from anybody, and importing runs code: of what it names only these are.

    Raises:
        UserError: there is no policy, it is damaged or not finite, or belongs to another run.

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


def whole(policies: Mapping[str, Any]) -> nn.Module:
    """The one of ``policies`` that all others are, or are part of."""
    for one in policies.values():
        if isinstance(one, nn.Module):
            parts = {id(module) for module in one.modules()}
            if all(id(policy) in parts for policy in policies.values()):
                return one
    raise Undescribed("no single module in what is evaluated: " + ", ".join(policies))


def _check_owner(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses a policy that is not what the finished run beside it ended with."""
    done = path.parent / "done.json"
    if not done.is_file() or not done.stat().st_size or "evaluation" not in facts:
        return
    try:
        last = dict(json.loads(done.read_text())["evaluation"] or {})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{done} must hold what a finished run ended with, got something else.") from None
    for name, there in facts["evaluation"].items():
        here = last.get(name)
        # A return that was not finite is None in the policy's file and may be NaN in the run's.
        if here != there and not (there is None and here != here):
            raise UserError(f"{path} belongs to another run than {done}: {name} is {there} there and {here} here.")


def _shapes(spaces: Spaces) -> str:
    shape, _ = spaces.observations.get("observation", ([], ""))
    actions = f"{len(spaces.low)} action dimensions" if spaces.num_actions is None else f"{spaces.num_actions} actions"
    return f"observations {list(shape)} and {actions}"
