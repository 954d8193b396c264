"""Every room has its document, and every snippet in them works as printed."""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchrl_reg.lab.commands.main import _parser

ROOT = Path(__file__).parents[2]
ROOMS = ("README.md", "recipes/README.md", "slurm/README.md", "tests/README.md", "torchrl_reg/GUIDE.md")
ROOMS += ("recipes/RESULTS.md", "recipes/NEGATIVE_RESULTS.md", "torchrl_reg/TORCHRL_NOTES.md")
#: What holds at the end of a script, where it says more than that the script ran.
ENDINGS = {
    "README.md-0": "assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())",
    "README.md-1": "assert episodes['action'].shape[0] == 4",
    "torchrl_reg/GUIDE.md-3": "assert len(buffer) == total_frames - 2 and len(returns) == 10",
    "torchrl_reg/GUIDE.md-4": "assert len(buffer) == total_frames and len(returns) == 10",
    "torchrl_reg/GUIDE.md-6": "import pathlib; assert pathlib.Path('results/long_pole/done.json').is_file()",
}


def blocks(room: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / room).read_text(), re.S | re.M)


def commands(start: str) -> Iterator[tuple[str, list[str]]]:
    """The room and the words of every printed command that begins with ``start``, its comment cut off."""
    for room in ROOMS:
        for line in "".join(blocks(room, "bash")).replace("&&", "\n").splitlines():
            words = shlex.split(line, comments=True)
            if " ".join(words).startswith(start):
                yield room, words


SCRIPTS = {f"{room}-{i}": script for room in ROOMS[:-1] for i, script in enumerate(blocks(room, "python"))}
#: Whole training scripts, which learn in minutes; run here for a few frames.
TRAINING = {name: script for name, script in SCRIPTS.items() if re.search("^total_frames", script, re.M)}
NOTES = dict(re.findall(r"^## (.*?)\n[^#]*?^```python\n(.*?)^```", (ROOT / ROOMS[-1]).read_text(), re.S | re.M))
#: Recipes without settings of Hydra's, which tests/recipes runs.
SCRIPTS_TO_READ = ("tour", "ray_m_dqn")
RECIPES = [words[1:] for _, words in commands("python recipes/")]
RECIPES += [[f"recipes/{words[2]}.py", *words[3:]] for _, words in commands("torchrl-reg run") if len(words) > 2]
RECIPES = [words for words in RECIPES if "--help" not in words and Path(words[0]).stem not in SCRIPTS_TO_READ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_run(name: str, tmp_path: Path, finished_run: Callable[[Path], Path]) -> None:
    assert set(ENDINGS) <= set(SCRIPTS)
    script = re.sub(r"^(total_frames.*) = [\d_]+", r"\1 = 1_600", SCRIPTS[name], flags=re.M)
    finished_run(tmp_path / "results/m_iqn/cartpole/default/seed=0")
    place = f"import os; os.chdir({str(tmp_path)!r})"
    (tmp_path / "script.py").write_text(f"{place}\n{script}\n{ENDINGS.get(name, '')}\n")
    # Forked where torch has been imported, which takes most of a script's time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchrl_reg.lab.run.curves", "torchrl_reg.lab.agents", "pandas"])
    process = context.Process(target=runpy.run_path, args=(str(tmp_path / "script.py"), None, "__main__"))
    process.start()
    process.join(240)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TRAINING)
def test_the_training_scripts_solve_their_task(name: str, seed: int) -> None:
    script = re.sub("^seed = 0$", f"seed = {seed}", TRAINING[name], flags=re.M)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) >= (475 if "CartPole" in script else -200)


@pytest.mark.parametrize("title", NOTES)
@pytest.mark.filterwarnings("ignore")
def test_torchrl_does_what_the_notes_say(title: str) -> None:
    """One that fails was mended upstream: its entry goes."""
    exec(compile(NOTES[title], title, "exec", dont_inherit=True), {"__name__": "notes"})


def test_every_note_has_a_title_of_its_own() -> None:
    assert len(NOTES) == len(blocks(ROOMS[-1], "python")) >= 15


#: What the guide prints for a network, regularizer, head and shaping of one's own.
OWN = ("head.network._target_=my_module.my_network", "+shaping._target_=my_module.SoftGap +shaping.alpha=0.5")
OWN += ("regularizer._target_=my_module.Towards +regularizer.tau=0.2",)
OWN += ("head._target_=my_module.Expectile +head.kappa=0.7",)


def test_the_guides_own_parts_train_together_and_its_sweep_is_planned(tmp_path: Path) -> None:
    guide, scripts = "torchrl_reg/GUIDE.md", blocks("torchrl_reg/GUIDE.md", "python")
    assert all(words in (ROOT / guide).read_text() for words in OWN)
    own = [script for script in scripts if re.search(r"^class (Dueling|Towards|Expectile|SoftGap)\b", script, re.M)]
    parts = [re.split(r"\n(?:env = |check_)", script)[0] for script in own]
    parts.append("def my_network(settings, env):\n    return Dueling(4, 2)\n")
    (tmp_path / "my_module.py").write_text("\n".join(parts))
    (tmp_path / "my/conf/sweep").mkdir(parents=True)
    (tmp_path / "my/conf/sweep/mine.yaml").write_text(*blocks(guide, "yaml"))
    short = ["algo.total_frames=600", "algo.learning_starts_frames=200", "run.eval_episodes=2", "run.dir=run"]
    launch = ["slurm/launch.py", "sweep=mine", "dry=true", "cluster=local", "--config-dir", "my/conf"]
    for script, *words in (["recipes/q_learning.py", *" ".join(OWN).split(), *short], launch):
        command = [sys.executable, str(ROOT / script), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/done.json").is_file() and "mine: 10 runs, 10 to run." in done.stdout


@pytest.mark.parametrize("words", RECIPES, ids=" ".join)
def test_the_recipe_commands_compose(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a multirun the first of each list of values; Hydra's own settings are not the recipe's."""
    name, overrides = (
        Path(words[0]).stem,
        [w for w in words[1:] if w != "-m" and not w.startswith(("hydra/", "hydra."))],
    )
    if "-m" in words:
        overrides = [re.sub(r"=.*interval\(([^,]+),.*", r"=\1", text) for text in overrides]
        overrides = [re.sub(r"^([^=\[]+=[^,\[]+),.*", r"\1", text) for text in overrides]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--check"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps([overrides])))
    importlib.import_module(f"recipes.{name}").main()


def test_the_other_commands_name_what_exists() -> None:
    found = list(commands("torchrl-reg "))
    for _, words in found:
        _, unknown = _parser(words[1:]).parse_known_args(words[1:])
        assert not unknown or words[1] in ("run", "launch", "status"), words
    for _, words in commands("python slurm/"):
        assert (ROOT / words[1]).is_file(), words
    assert len(found) >= 10


def test_links_and_figures_lead_somewhere() -> None:
    for room in ROOMS:
        text = (ROOT / room).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
            target = "".join(link)
            assert target.startswith("https://") or ((ROOT / room).parent / target).exists(), (room, target)


def test_every_extra_is_listed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "torchrl_reg/GUIDE.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    names = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(names))) == set(extras)


def test_every_preset_is_documented() -> None:
    """Not every recipe: one of one's own asks for no page here."""
    room = (ROOT / "recipes/README.md").read_text()
    for preset in (ROOT / "recipes/conf/paper").glob("*.yaml"):
        assert f"`+paper={preset.stem}`" in room
    for sweep in (ROOT / "slurm/conf/sweep").glob("*.yaml"):
        assert f"`{sweep.stem}`" in (ROOT / "slurm/README.md").read_text()
