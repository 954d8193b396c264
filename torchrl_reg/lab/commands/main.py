"""The ``torchrl-reg`` command: ``torchrl-reg table results/NAME``.

Subcommands live in :mod:`torchrl_reg.lab.commands` and are imported when named, so ``torchrl-reg --help`` is quick and
``torchrl-reg table`` needs no torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from torchrl_reg.lab.errors import user_sentence
from torchrl_reg.lab.printable import printable

#: Subcommand -> what it does; its module is ``torchrl_reg.lab.commands.<name>``.
COMMANDS = {
    "run": "trains a recipe, run m_iqn algo.lr=1e-4 for one; without a name, lists them",
    "table": "scores of every method with intervals: markdown, LaTeX or CSV",
    "results": "the tables of a Markdown page, made from rows that table --save wrote",
    "plot": "learning curves, aggregates, improvement bars, performance profiles",
    "report": "one self-contained HTML file about a sweep: curves, profiles, hyperparameters, failures, commands",
    "launch": "starts a sweep: one array on SLURM, or the same runs on this machine",
    "status": "how a sweep is doing: done, running, waiting and why, failed and why, time left",
    "list": "the trained agents that come with the package, with their scores",
    "evaluate": "returns of a trained policy over more episodes, with intervals",
    "play": "an episode of a trained policy, in a window or as a GIF or MP4",
    "export": "a trained policy in a folder of its own: weights, settings, scores, licence",
    "check": "holds a loss of anybody's to the target that it claims, and names its error",
}
#: Commands whose words go to a script as they are; their module is ``torchrl_reg.lab.commands.scripts``.
_PASSED_ON = ("run", "launch", "status")
#: The extras whose packages a command needs; ``report`` unless listed.
_EXTRAS = {
    "run": "recipes",
    "launch": "recipes,slurm,report",
    "status": "recipes,slurm,report",
    "evaluate": "recipes",
    "export": "recipes",
    "play": "play",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand that ``arguments`` (default: the command line) name; returns the exit code.

    What a user did wrong ends in one sentence on stderr and exit code 1 (2 for arguments that cannot be parsed).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = _parser(words)
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            near = difflib.get_close_matches(words[0], COMMANDS, n=1)
            parser.error(f"{words[0]} is not a command{f'; did you mean {near[0]}?' if near else '.'}")
        parsed, unknown = parser.parse_known_args(words)
        if unknown and parsed.command not in _PASSED_ON:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if parsed.command is None:
            parser.print_help()
            return 0
        code = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except ImportError as error:
        missing = (error.name or "torchrl_reg").partition(".")[0]
        if missing in ("torchrl_reg", "slurm") and error.name is not None:
            raise
        extras = _EXTRAS.get(words[0], "report")
        needs = f"{words[0]} needs {missing}, got none: pip install 'torchrl_reg[{extras}]'."
        # Without a name it is lab/cli/extras.py that says what to install.
        print(f"torchrl-reg: {error if error.name is None else needs}", file=sys.stderr)
        return 1
    except ValueError as error:
        # What is not meant for a user is a bug of ours and keeps its traceback.
        said = user_sentence(error)
        if said is None:
            raise
        print(f"torchrl-reg: {printable(said)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrl-reg", description="What to do with runs of torchrl_reg.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, what in COMMANDS.items():
        below = subparsers.add_parser(name, help=what, add_help=name not in _PASSED_ON)
        below.description = f"{what[0].upper()}{what[1:]}."
        if name in words[:1]:
            module = importlib.import_module(f"torchrl_reg.lab.commands.{'scripts' if name in _PASSED_ON else name}")
            module.add_arguments(below)
            below.set_defaults(run=module.run, words=words[1:])
    return parser


if __name__ == "__main__":
    sys.exit(main())
