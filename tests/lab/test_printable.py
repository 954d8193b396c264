"""What is printed of a run, where nobody can read it any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from torchrl_reg.lab.printable import say
sys.stdin.readline()  # until the reader has gone
for _ in range(3):
    say("x" * 100_000{stream})
print("and on", file=sys.stderr if "{stream}" == "" else sys.stdout)
"""


def test_a_closed_stream_is_silent() -> None:
    command = ["bash", "-c", '"$0" -c "from torchrl_reg.lab.printable import say; say(1); say(2, to_stderr=True)" >&-']
    done = subprocess.run([*command, sys.executable], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "2\n")


@pytest.mark.parametrize("stream", ["", ", to_stderr=True"])
def test_a_program_goes_on_where_its_reader_has_gone(stream: str) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", PROGRAM.replace("{stream}", stream)], text=True, **pipes) as process:
        gone, read = (process.stderr, process.stdout) if stream else (process.stdout, process.stderr)
        gone.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert read.read() == "and on\n"
        assert process.wait() == 0
