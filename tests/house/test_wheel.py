"""A built wheel, installed with only torch, torchrl and gymnasium, and with all extras."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from torchrl_reg.lab.analysis import find_runs

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100)
    return next(folder.glob("*.whl"))


def installed(wheel: Path, folder: Path) -> Path:
    """A virtual environment that holds the wheel alone; its interpreter."""
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    return folder / "bin/python"


def ask(python: Path, *words: str, where: Path, seen: Path) -> subprocess.CompletedProcess[str]:
    """``torchrl-reg words``, with the packages in ``seen``."""
    command = [str(python), "-m", "torchrl_reg.lab.commands.main", *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(seen), "HOME": str(where)}
    return subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, timeout=280)


def required(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """The distributions that ``name`` needs, extras aside, itself among them."""
    if name.lower() in found:
        return
    found[name.lower()] = distribution = importlib.metadata.distribution(name)
    for line in distribution.requires or ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            required(need.name, found)


def linked(folder: Path, *names: str) -> Path:
    """``folder``, with links to these distributions and what they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for name in names:
        required(name, found)
    for distribution in found.values():
        for file in distribution.files or ():
            top = Path(str(file)).parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def test_export_and_load_where_no_extra_is(wheel: Path, tmp_path: Path, finished_run: Callable[..., Path]) -> None:
    python, run = installed(wheel, tmp_path / "venv"), finished_run(tmp_path / "run")
    (tmp_path / "bare").mkdir()
    bare = linked(
        tmp_path / "bare", "torch", "torchrl", "tensordict", "gymnasium"
    )  # what pip install torchrl_reg brings
    absent = "import hydra, omegaconf", "import matplotlib", "import yaml", "import ale_py", "import minatar"
    for line in absent:
        assert subprocess.run([python, "-c", line], capture_output=True, env={"PYTHONPATH": str(bare)}).returncode == 1
    refused = ask(python, "export", str(run), "agent", where=tmp_path, seen=bare)
    assert refused.returncode == 1 and "needs safetensors, got none: pip install" in refused.stderr
    linked(bare, "safetensors")
    done = ask(python, "export", str(run), "agent", where=tmp_path, seen=bare)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "agent/README.md").read_text().startswith("# m_iqn on cartpole\n")
    code = (
        "import torch, torchrl_reg\nfrom tensordict import TensorDict\n"
        "policy = torchrl_reg.load_policy('agent')\n"
        "print(torchrl_reg.__file__, policy(TensorDict({'observation': torch.ones(2, 4)}, [2]))['action'].shape)\n"
    )
    shown = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(bare)}, timeout=200
    )
    assert shown.stdout.startswith(str(tmp_path / "venv")) and "torch.Size([2])" in shown.stdout, shown.stderr
    for command, extras in (("launch", "recipes,slurm,report"), ("status", "recipes,slurm,report"), ("run", "recipes")):
        refused = ask(python, command, "m_iqn", where=tmp_path, seen=bare)
        assert refused.returncode == 1 and f"pip install 'torchrl_reg[{extras}]'" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_recipes_and_sweeps_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    python, seen = installed(wheel, tmp_path / "venv"), Path(sysconfig.get_paths()["purelib"])
    (tmp_path / "slurm.py").write_text("raise ImportError('a file of the user')\n")
    few = ("algo.total_frames=600", "algo.learning_starts_frames=200", "run.eval_episodes=1")
    for words in (few, (*few, "run.seed=1", "run.progress=false"), few):  # the last is finished already
        done = ask(python, "run", "m_iqn", *words, where=tmp_path, seen=seen)
        assert done.returncode == 0, done.stderr
    assert "already finished" in done.stdout
    (run, _) = sorted(tmp_path.glob("results/m_iqn/cartpole/*/seed=*"))
    assert (run / "command.txt").read_text().startswith("torchrl-reg run m_iqn algo.total_frames=600 ")
    assert find_runs(run)[0].script == "recipes/m_iqn.py" and find_runs(run)[0].commits == ("0.1.0",)
    for words in (("table", "results", "--save", "rows.jsonl"), ("results", "rows.jsonl", "--page", "page.md")):
        done = ask(python, *words, where=tmp_path, seen=seen)
        assert done.returncode == 0, done.stderr
    assert "| cartpole | m_iqn | 2 | " in (tmp_path / "page.md").read_text()
    sweep = [f"+sweep.base.{word}" for word in few] + ["sweep.seeds=1", "sweep.grid.env=[cartpole]"]
    done = ask(python, "launch", "sweep=dqn_versus_m_dqn", "cluster=local", *sweep, where=tmp_path, seen=seen)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 2 done" in done.stdout and "torchrl-reg status" in done.stdout
    status = ask(python, "status", "dqn_versus_m_dqn", where=tmp_path, seen=seen)
    assert status.returncode == 0 and "2 runs: 2 done" in status.stdout, status.stderr
    copied = next((tmp_path / "results/dqn_versus_m_dqn/code").iterdir())
    assert copied.name.startswith("0.1.0-") and (copied / "recipes/m_dqn.py").is_file()
    assert (copied / "slurm/array_element.py").is_file() and not (copied / "torchrl_reg/recipes").exists()


def test_a_hydra_sweep_reads_its_script_again(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    python, seen = installed(wheel, tmp_path / "venv"), Path(sysconfig.get_paths()["purelib"])
    few = ("algo.total_frames=400", "algo.learning_starts_frames=200", "run.eval_episodes=1", "run.seed=0,1")
    words = ("-m", "hydra/launcher=submitit_local", *few)
    done = ask(python, "run", "m_dqn", *words, where=tmp_path, seen=seen)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("results/m_dqn/cartpole/*/seed=*/done.json"))) == 2


def test_the_wheel_holds_one_package_and_its_page_absolute_links(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"torchrl_reg", "torchrl_reg-0.1.0.dist-info"}
    assert {"torchrl_reg/recipes/conf/paper/vieillard2020.yaml", "torchrl_reg/slurm/conf/launch.yaml"} <= set(names)
    page = zipfile.ZipFile(wheel).read("torchrl_reg-0.1.0.dist-info/METADATA").decode()
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page)
    assert len(links) > 5 and all("".join(link).startswith("https://") for link in links)


def test_an_editable_installation_is_the_checkout(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_editable as b; print(b(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True, timeout=100)
    contents = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    assert contents.read("_torchrl_reg.pth").decode().split() == [str(ROOT)]
    assert not [name for name in contents.namelist() if name.startswith("torchrl_reg/")]
