"""User errors end in one sentence; bugs keep their traceback."""

from __future__ import annotations

import errno

import pytest

from torchrl_reg.lab.errors import user_sentence


def sentence(text: str, module: str) -> str | None:
    """The message for the error that ``text`` raises in a module of this name."""
    try:
        exec(text, {"__name__": module})
    except Exception as error:
        return user_sentence(error)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('tau must be > 0, got -1.')", "tau must be > 0, got -1."),
        ("list(zip([1], [], strict=True))", None),
        ("int('x')", None),
        ("[].index(3)", None),
        ("a, b = [1]", None),
        ("import torch; torch.ones(2) @ torch.ones(3)", None),
        ("raise RuntimeError('shapes differ')", None),
    ],
)
def test_only_what_the_library_itself_raises_of_arguments_is_the_users(text, said):
    assert sentence(text, "torchrl_reg.objectives.made_up") == said
    for elsewhere in ("torchrl_reg.lab.made_up", "somebody.elses"):
        assert sentence(text, elsewhere) is None


def test_a_full_disk_and_too_little_memory_are_the_users():
    full = user_sentence(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"))
    assert full == "[Errno 28] No space left on device: 'metrics.jsonl'"
    assert user_sentence(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    lower = "lower replay_capacity, batch_size, num_envs or the size of the network."
    assert user_sentence(MemoryError()) == f"Out of memory (MemoryError): {lower}"
    cuda = RuntimeError("CUDA out of memory. Tried\nto allocate")
    assert user_sentence(cuda) == f"Out of memory (CUDA out of memory. Tried): {lower}"
