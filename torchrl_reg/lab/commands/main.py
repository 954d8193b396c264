"""The ``torchrl-reg`` command: ``torchrl-reg table results/NAME``.

Subcommands are modules of :mod:`torchrl_reg.lab.commands`, imported when used: ``torchrl-reg --help`` is fast and
``torchrl-reg table`` needs no torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from torchrl_reg.lab.errors import user_sentence
from torchrl_reg.lab.printable import printable, silence

#: Help texts of the subcommands; their modules are ``torchrl_reg.lab.commands.<name>``.
COMMANDS = {
    "run": "trains a recipe, as in run m_iqn algo.learning_rate=1e-4; without a name, lists the recipes",
    "table": "scores of every method with intervals: markdown, LaTeX or CSV",
    "results": "the tables of a Markdown page, from rows written by table --save",
    "plot": "learning curves, aggregates, improvement bars, performance profiles",
    "report": "a self-contained HTML report on a sweep: curves, profiles, hyperparameters, failures, commands",
    "launch": "starts a sweep: one array on SLURM, or the same runs on this machine",
    "status": "the state of a sweep: done, running, waiting and why, failed and why, time left",
    "list": "the trained agents in the package, with their scores",
    "evaluate": "returns of a trained policy over more episodes, with intervals",
    "play": "an episode of a trained policy, in a window or as a GIF or MP4",
    "export": "a trained policy as a folder to share: weights, settings, scores, licence",
    "check": "compares any loss with its exact target, and names its error",
}
#: Commands whose arguments are passed on to a script, by ``torchrl_reg.lab.commands.scripts``.
_PASSED_ON = ("run", "launch", "status")
#: The extras that a command needs; by default ``report``.
_EXTRAS = {
    "run": "recipes",
    "launch": "recipes,slurm,report",
    "status": "recipes,slurm,report",
    "evaluate": "recipes",
    "export": "recipes",
    "play": "play",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand in ``arguments`` (default: the command line); returns the exit code.

    Errors that the user can fix print one sentence to stderr and give exit code 1 (2 for arguments that cannot be
    parsed).
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
        # Errors without a name are from lab/cli/extras.py, with advice in their message.
        print(f"torchrl-reg: {error if error.name is None else needs}", file=sys.stderr)
        return 1
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        print(f"torchrl-reg: {error.filename} cannot be read or written: {error.strerror}.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, less) has exited
        silence(sys.stdout)
        return 0
    except (ValueError, OSError) as error:
        sentence = user_sentence(error)
        if sentence is None:  # a bug, which keeps its traceback
            raise
        try:
            sys.stdout.flush()
        except OSError:
            silence(sys.stdout)
        print(f"torchrl-reg: {printable(sentence)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrl-reg", description="Runs and analyses experiments of torchrl_reg.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, add_help=name not in _PASSED_ON)
        subparser.description = f"{text[0].upper()}{text[1:]}."
        if name in words[:1]:
            module = importlib.import_module(f"torchrl_reg.lab.commands.{'scripts' if name in _PASSED_ON else name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, words=words[1:])
    return parser


if __name__ == "__main__":
    sys.exit(main())
