"""The loss of an actor over discrete actions: ``<pi, tau ln pi - q>``, whose minimum is the soft policy of ``q``.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.testing.checks import Case
from torchrl_reg.testing.probe import gradients
from torchrl_reg.testing.report import Check, compared

#: Error -> the factors of ``<pi, ln pi>`` and of ``<pi, q>`` in the loss that has it, given tau; "" has none.
_LOSSES = {
    "": lambda tau: (tau, -1.0),
    "entropy missing in the actor's loss": lambda tau: (0.0, -1.0),
    "sign of the entropy in the actor's loss": lambda tau: (-tau, -1.0),
    "tau missing in the actor's loss": lambda tau: (1.0, -1.0),
    "actor's loss turned round": lambda tau: (-tau, 1.0),
}


def actor_check(case: Case) -> Check:
    """The gradient of ``loss_actor`` with respect to the logits, against that of each of the losses above."""
    probe, name = case.probe, "actor's gradient"
    out = probe.loss(probe.data(case.rows))
    if "loss_actor" not in list(out.keys()):
        return Check(name, "n/a", note="returns no loss_actor")
    if any(g.abs().max() > 1e-9 for g in gradients(out["loss_actor"].sum(), probe.online)):
        return Check(name, "fail", note="it reaches the critics", errors=("actor's loss trains the critics",))
    got = torch.stack(gradients(out["loss_actor"].sum(), probe.logits)).sum(0).double()
    made = {error: _gradient(case, *factors(case.claim.tau)) for error, factors in _LOSSES.items()}
    found = [error for error, gradient in made.items() if torch.allclose(got, gradient, rtol=1e-4, atol=1e-6)]
    return compared(name, made[""], got, found[:1])


def critics_check(case: Case) -> Check:
    """Each critic gets a gradient from some loss, and the actor none from a critic's."""
    name, probe = "critics' gradient", case.probe
    out = probe.loss(probe.data(case.rows))
    names = [str(entry) for entry in (out.keys() if hasattr(out, "keys") else ())]
    of_critics = [
        out[n].sum() for n in names if n.startswith("loss") and not n.startswith(("loss_actor", "loss_alpha"))
    ]
    if not of_critics:
        return Check(name, "n/a", note="returns no losses by name")
    total = torch.stack(of_critics).sum()
    critics = torch.cat([g.reshape(-1, *g.shape[-2:]) for g in gradients(total, probe.online)])
    trained = int((critics.abs().amax((-2, -1)) > 0).sum())
    errors = ["critic left out"] * (trained < len(critics))
    split = "loss_actor" in names  # else one loss has both
    errors += ["critics' loss trains the actor"] * (split and any(g.any() for g in gradients(total, probe.logits)))
    status = "fail" if errors else "pass"
    return Check(name, status, len(critics), trained, tuple(errors), "critics that get a gradient")


def _gradient(case: Case, of_log_pi: float, of_q: float) -> Tensor:
    assert case.values.policy is not None
    logits, states = case.values.policy.clone().requires_grad_(), case.rows.s
    log_pi = logits[states].log_softmax(-1)
    loss = (log_pi.exp() * (of_log_pi * log_pi + of_q * case.values.online[states])).sum(-1).mean()
    return torch.autograd.grad(loss, logits)[0]
