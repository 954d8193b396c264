"""The data of a check, and what a loss reads of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import DistributionalQValueActor, OneHotCategorical, ProbabilisticActor, QValueActor

from torchrl_reg.compat import TorchDispatchMode
from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor, QuantileQActor
from torchrl_reg.testing.report import raised
from torchrl_reg.testing.targets import CheckError, Rows, Values

_CLAMPS = {torch.ops.aten.clamp, torch.ops.aten.clamp_, torch.ops.aten.clip, torch.ops.aten.clip_}
#: Operations with one bound -> which.
_HALF_CLAMPS = {
    **dict.fromkeys((torch.ops.aten.clamp_min, torch.ops.aten.clamp_min_, torch.ops.aten.maximum), "min"),
    **dict.fromkeys((torch.ops.aten.clamp_max, torch.ops.aten.clamp_max_, torch.ops.aten.minimum), "max"),
}
_SOFTMAXES = {torch.ops.aten._softmax, torch.ops.aten._log_softmax, torch.ops.aten.logsumexp, torch.ops.aten.exp}


class Trace(TorchDispatchMode):
    """Records the bounds of clips and the inputs of softmaxes; random numbers in [0, 1) are all 1/2.

    Or, if ``spread``, 1/4 and 3/4 in turn: then so are any even number of them in a row, however they are shared out.

    ``tau ln pi <= 0``, so that a clip above 0 changes no target; and ``q - tau ln pi`` is the same for all actions, so
    that any policy gives it the same mean. Both are mistakes none the less, and errors elsewhere: the second in M-IQN.
    """

    def __init__(self, spread: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spread, self.odd = spread, False
        self.clips: list[tuple[float, float]] = []
        self.clipped: list[tuple[Tensor, dict[str, float]]] = []
        self.softmaxes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        bounds: dict[str, Any] = {}
        if packet in _CLAMPS:
            bounds = dict(zip(("min", "max"), args[1:], strict=False)) | kwargs
        elif packet in _HALF_CLAMPS:
            bounds = {_HALF_CLAMPS[packet]: args[1] if len(args) > 1 else next(iter(kwargs.values()))}
        elif packet in _SOFTMAXES:
            self.softmaxes.append(args[0].detach().clone())
        out = func(*args, **kwargs)
        if bounds:
            self._clip(args[0], out, bounds)
        return self._chosen(out) if packet is torch.ops.aten.rand else out

    def _chosen(self, drawn: Tensor) -> Tensor:
        if not self.spread:
            return torch.full_like(drawn, 0.5)
        self.odd |= drawn.numel() % 2 == 1  # of which a half each is not to be had
        return (0.25 + 0.5 * (torch.arange(drawn.numel()) % 2)).to(drawn).view_as(drawn)

    def _clip(self, given: Tensor, out: Tensor, bounds: dict[str, Any]) -> None:
        """One bound may come after the other."""
        known = next((held for tensor, held in self.clipped if tensor is given), {})
        new = {k: float(v) for k, v in bounds.items() if isinstance(v, int | float) or getattr(v, "numel", int)() == 1}
        self.clipped.append((out, known | new))
        if len(known | new) == 2:
            self.clips.append(((known | new)["min"], (known | new)["max"]))

    def clips_above_zero(self, clip_min: float) -> float | None:
        """The upper end of a clip whose lower one is ``clip_min``, if it is above 0."""
        return next((high for low, high in self.clips if abs(low - clip_min) < 1e-6 and high > 1e-6), None)

    def softmax_of(self, q: Tensor) -> bool:
        """True if a softmax was taken of the values ``q [A]`` as they are, up to a shift."""
        for given in self.softmaxes:
            flat = given.double().flatten()
            if flat.shape == q.shape and ((flat - flat.max()) - (q - q.max())).abs().max() < 1e-6:
                return True
        return False


NUM_STATES, NUM_ACTIONS, NUM_QUANTILES = 6, 3, 4
SUPPORT = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64)


class QTable(nn.Module):
    """``width`` values of each action by state, ``[*B, width * A]`` from one-hot observations ``[*B, S]``."""

    def __init__(self, width: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.q_table = nn.Parameter(torch.zeros(NUM_STATES, width * NUM_ACTIONS, dtype=dtype))

    def forward(self, observation: Tensor) -> Tensor:
        return observation @ self.q_table


class LogitTable(nn.Module):
    """Logits of a policy by state, ``[*B, A]``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.logit_table = nn.Parameter(torch.zeros(NUM_STATES, NUM_ACTIONS, dtype=dtype))

    def forward(self, observation: Tensor) -> Tensor:
        return observation @ self.logit_table


class AtomTable(QTable):
    """Logits ``[*B, K, A]``."""

    def forward(self, observation: Tensor) -> Tensor:
        return super().forward(observation).unflatten(-1, (len(SUPPORT), NUM_ACTIONS))


class FractionTable(QTable):
    """Quantiles ``[*B, N, A]`` that are lines: the values at fraction 1/2, and 1/4 of the slopes beside them."""

    def features(self, observation: Tensor) -> Tensor:
        """Values and slopes ``[*B, 2 A]``."""
        return observation @ self.q_table

    def quantiles(self, features: Tensor, fractions: Tensor) -> Tensor:
        """Quantiles at ``fractions [*B, N]``."""
        q, widths = features.unsqueeze(-2).chunk(2, -1)
        return q + (4 * fractions.unsqueeze(-1) - 2) * widths

    def forward(self, observation: Tensor, fractions: Tensor | None = None) -> Tensor:
        features = self.features(observation)
        return features.chunk(2, -1)[0] if fractions is None else self.quantiles(features, fractions)


def networks(head: str, *, own: bool, dtype: torch.dtype, one_hot: bool = False, masked: bool = False) -> list[Any]:
    """A Q-value actor over a table, or an actor and a critic; ``own`` takes this package's actor of distributions."""
    spec, mask_key = OneHot(NUM_ACTIONS) if one_hot else Categorical(NUM_ACTIONS), "action_mask" if masked else None
    if head == "actor":
        logits = TensorDictModule(LogitTable(dtype), ["observation"], ["logits"])
        kind = OneHotCategorical if one_hot else torch.distributions.Categorical
        actor = ProbabilisticActor(logits, spec=spec, in_keys=["logits"], distribution_class=kind)
        return [actor, TensorDictModule(QTable(1, dtype), ["observation"], ["action_value"])]
    if head == "categorical" and own:
        low, high = SUPPORT[0].item(), SUPPORT[-1].item()
        net, atoms = QTable(len(SUPPORT), dtype), len(SUPPORT)
        return [
            CategoricalQActor(net, num_atoms=atoms, value_min=low, value_max=high, spec=spec, action_mask_key=mask_key)
        ]
    if head == "categorical":
        table, support = AtomTable(len(SUPPORT), dtype), SUPPORT.to(dtype)
        return [DistributionalQValueActor(table, support=support, spec=spec, action_mask_key=mask_key)]
    if head == "quantiles":
        net = QTable(NUM_QUANTILES, dtype)
        return [FixedQuantileQActor(net, num_quantiles=NUM_QUANTILES, spec=spec, action_mask_key=mask_key)]
    if head == "implicit":
        drawn: Any = FractionTable(2, dtype)
        return [QuantileQActor(drawn, spec=spec, action_mask_key=mask_key)]
    return [QValueActor(QTable(1, dtype), spec=spec, action_mask_key=mask_key)]


def built(make: Callable[..., Any], over: Sequence[Any], given: Mapping[str, Any]) -> nn.Module:
    """The loss of a class or factory over the networks; a class gets those of the numbers ``given`` that it takes."""
    known = {name: value for name, value in given.items() if value is not None}
    taken: set[str] = set()
    if inspect.isclass(make):
        for cls in make.__mro__:  # **kwargs are handed on to the classes below
            parameters = inspect.signature(vars(cls)["__init__"]).parameters if "__init__" in vars(cls) else {}
            taken |= parameters.keys()
            if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    if "beta" in taken and "tau" in known:
        known["beta"] = 1 / known["tau"]
    renamed = {"double_dqn": known.get("double"), **known}
    if len(over) > 1:
        renamed |= {"alpha_init": known.get("tau"), "num_actions": NUM_ACTIONS, "action_space": over[0].spec["action"]}
    options = {k: v for k, v in renamed.items() if k in taken and v is not None}
    try:
        loss = make(*over, **options)
    except TypeError:  # TorchRL's losses have a gamma that they refuse
        options.pop("gamma", None)
        loss = make(*over, **options)
        taken.discard("gamma")
    if not isinstance(loss, nn.Module):
        raise CheckError(f"The loss must be a LossModule, or a function that makes one, got a {type(loss).__name__}.")
    if inspect.isclass(make) and hasattr(loss, "make_value_estimator") and "gamma" in known and "gamma" not in taken:
        with suppress(NotImplementedError, TypeError):  # it may have none
            loss.make_value_estimator(gamma=known["gamma"])  # type: ignore[operator]
    return loss


@dataclass(frozen=True, eq=False)
class Reading:
    """The loss of each row alone, and its gradient."""

    loss: Tensor
    """``[N]``."""
    grad: Tensor
    """Its gradient with respect to the online table ``[N, S, width * A]``."""
    traces: list[Trace]
    """Softmaxes and clips computed on the way."""

    def __getitem__(self, index: Any) -> Reading:
        picked = torch.arange(len(self.loss))[index].tolist()
        return Reading(self.loss[index], self.grad[index], [self.traces[i] for i in picked])


class Probe:
    """A loss whose networks are tables that can be set."""

    def __init__(self, loss: nn.Module, head: str, dtype: torch.dtype, one_hot: bool = False) -> None:
        self.loss, self.head, self.dtype, self.one_hot = loss, head, dtype, one_hot
        self.copies = 1  # of each row, for losses that take no batch of one
        self.trace, self.spread = Trace(), False  # spread: random fractions are 1/4 and 3/4, not 1/2
        entries = [*loss.named_parameters(), *loss.named_buffers()]
        tables = {n: p for n, p in entries if n.endswith("q_table")}
        is_target = {n: "target" in n.lower() or not p.requires_grad for n, p in tables.items()}
        self.online = [p for n, p in tables.items() if not is_target[n]]
        self.target = [p for n, p in tables.items() if is_target[n]]
        self.logits = [p for n, p in entries if n.endswith("logit_table")]
        if not self.online or (len(self.online) > 1 and head != "actor"):
            what = f"{len(self.online)} of them hold the table ({', '.join(tables) or 'no name'})"
            advice = "the name of a target network must contain target"
            raise CheckError(f"The loss must hold its network once among its parameters, got {what}; {advice}.")

    @property
    def fractions(self) -> Tensor:
        """Those of fixed quantiles, or those that a spread probe draws."""
        count = NUM_QUANTILES if self.head == "quantiles" else 2
        return (torch.arange(count).double() + 0.5) / count

    def set(self, values: Values, widths: Tensor | float = 0.0) -> None:
        """Set the values of the networks; of two target critics none is below ``values.target``.

        Quantiles are lines: ``widths [S, A]`` below the value at fraction 1/4, and above it at 3/4.
        """
        above: list[Any] = [0.0, 0.0]
        if values.spread is not None:
            above = [(-values.spread).clamp(min=0), values.spread.clamp(min=0)]
        for table in self.online:
            table.data.copy_(self._entries(values.online, widths))
        for number, table in enumerate(self.target):
            both = [self._entries(values.target + more, widths) for more in above]
            table.data.copy_(torch.stack(both) if table.ndim == 3 else both[number % 2])
        for table in self.logits:
            table.data.copy_(torch.zeros_like(table) if values.policy is None else values.policy)

    def _entries(self, q: Tensor, widths: Tensor | float) -> Tensor:
        if self.head == "categorical":
            return _atoms(q).log().flatten(-2)
        if self.head == "quantiles":
            return torch.cat([q + (4 * fraction - 2) * widths for fraction in self.fractions], -1)
        return torch.cat((q, widths + 0 * q), -1) if self.head == "implicit" else q

    def data(self, rows: Rows, **more: Tensor) -> TensorDict:
        """The transitions as TorchRL has them; ``more`` are entries ``[N, ...]`` to add."""
        eye, dtype = torch.eye(NUM_STATES, dtype=self.dtype), self.dtype
        action = nn.functional.one_hot(rows.a, NUM_ACTIONS) if self.one_hot else rows.a
        done = rows.terminated | rows.truncated
        ends = {"done": done, "terminated": rows.terminated, "truncated": rows.truncated}
        following = {"observation": eye[rows.next_s], "reward": rows.r.to(dtype).unsqueeze(-1)}
        following |= {name: flag.unsqueeze(-1) for name, flag in ends.items()}
        data = TensorDict({"observation": eye[rows.s], "action": action, "next": following}, rows.s.shape)
        for name, value in more.items():
            data[tuple(name.split(".")) if "." in name else name] = value
        return data

    def value(self, data: TensorDict) -> Tensor:
        """The loss of a batch, its mean if it is not reduced; random numbers it draws are chosen by the trace."""
        with Trace(self.spread) as self.trace:
            return total(self.loss(data), data.numel())

    def gradient(self, data: TensorDict) -> Tensor:
        """That of the loss of a batch with respect to the online table ``[S, width * A]``."""
        return self._gradient(self.value(data))

    def _gradient(self, value: Tensor) -> Tensor:
        if not value.requires_grad:
            raise CheckError("The loss must have a gradient with respect to its network, got one that is detached.")
        return torch.cat([g.reshape(-1, *g.shape[-2:]) for g in gradients(value, self.online)]).sum(0)

    def read(self, rows: Rows, **more: Tensor) -> Reading:
        """The loss and its gradient of every row by itself."""
        losses, grads, traces = [], [], []
        data = self.data(rows, **more)
        for row in range(len(rows)):
            try:
                value = self.value(data[[row] * self.copies].clone())
            except CheckError:
                raise
            except Exception as error:
                where = f"s={int(rows.s[row])}, a={int(rows.a[row])}, r={rows.r[row].item():.3g}"
                said = f"The loss must take every transition, got one that {raised(error)}, at {where}."
                raise CheckError(said) from error
            losses.append(value.detach())
            grads.append(self._gradient(value))
            traces.append(self.trace)
        return Reading(torch.stack(losses).double(), torch.stack(grads).double(), traces)

    def mean_targets(self, rows: Rows, online: Tensor, reading: Reading) -> Tensor:
        """Of categorical distributions, the means ``[N]`` of their targets: a cross-entropy's gradient is p - m."""
        grad = reading.grad.unflatten(-1, (len(SUPPORT), NUM_ACTIONS))[torch.arange(len(rows)), rows.s, :, rows.a]
        return (_atoms(online)[rows.s, :, rows.a] - grad) @ SUPPORT


def total(out: Any, rows: int) -> Tensor:
    """A loss's output ``loss``, or the first entry named ``loss_...``: its sum, or if it has all rows, their mean."""
    if isinstance(out, tuple | list) and out:
        out = out[0]
    if isinstance(out, Tensor):
        return out.sum() / (rows if out.numel() % rows == 0 else 1)
    if not hasattr(out, "keys"):
        raise CheckError(f"The loss must return an entry named loss, got a {type(out).__name__}.")
    entries = [str(name) for name in list(out.keys())]
    names = [name for name in entries if name.startswith("loss")]
    if not names:
        raise CheckError(f"The loss must return an entry named loss, got {', '.join(entries) or 'none'}.")
    return total(out[next((name for name in ("loss", "loss_qvalue", "loss_critic") if name in names), names[0])], rows)


def gradients(value: Tensor, over: list[Any]) -> list[Tensor]:
    """Those of ``value`` with respect to each, 0 where it does not depend on it.

    Raises:
        CheckError: its backward pass raises.
    """
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in over]
    try:
        found = torch.autograd.grad(value, over, retain_graph=True, allow_unused=True)
    except Exception as error:
        raise CheckError(f"The loss must have a gradient, got one whose backward pass {raised(error)}.") from error
    return [torch.zeros_like(x) if g is None else g for x, g in zip(over, found, strict=True)]


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers of a fixed seed, which leave those of the caller as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _atoms(q: Tensor) -> Tensor:
    """Probabilities ``[S, K, A]`` with means ``q [S, A]``: a tenth spread, the rest on the two nearest atoms."""
    centre, step = q.double() / 0.9, SUPPORT[1] - SUPPORT[0]
    near = (1 - (centre.unsqueeze(-2) - SUPPORT.unsqueeze(-1)).abs() / step).clamp(min=0.0)
    spread = (SUPPORT.abs() <= 3).double() + 1e-14  # so that nothing of it is shifted beyond the ends
    return 0.9 * near + 0.1 * (spread / spread.sum()).unsqueeze(-1)
