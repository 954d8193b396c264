"""A built wheel, installed where nothing but torch, torchrl and gymnasium is, and beside all extras."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from torchrl_reg.agents import save_policy
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import NetSettings, QuantileQActor, quantile_network

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
    command = [str(python), "-m", "torchrl_reg.cli", *words]
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


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to what ``pip install torchrl_reg`` brings, and to nothing else."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for name in ("torch", "torchrl", "tensordict", "gymnasium"):
        required(name, found)
    folder = tmp_path_factory.mktemp("bare")
    for distribution in found.values():
        for file in distribution.files or ():
            top = Path(str(file)).parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def finished_run(folder: Path) -> Path:
    """A run as its files tell it; the policy has random weights."""
    folder.mkdir(parents=True)
    env = make_env(EnvSettings("cartpole"), num_envs=1)
    spec = env.full_action_spec_unbatched["action"]
    actor = QuantileQActor(quantile_network(NetSettings(), env), spec=spec)
    facts = {"env": {"name": "cartpole"}, "run": {"seed": 3}, "evaluation": {"frames": 96, "return_greedy_mean": 9.5}}
    save_policy(folder / "policy.safetensors", actor, facts)
    (folder / "config.yaml").write_text("env:\n  name: cartpole\nrun:\n  seed: 3\n")
    (folder / "command.txt").write_text("python recipes/m_iqn.py\n")
    return folder


def test_export_and_load_where_no_extra_is(wheel: Path, bare: Path, tmp_path: Path) -> None:
    python, run = installed(wheel, tmp_path / "venv"), finished_run(tmp_path / "run")
    absent = "import hydra, omegaconf", "import matplotlib", "import yaml", "import ale_py", "import minatar"
    for line in absent:
        assert subprocess.run([python, "-c", line], capture_output=True, env={"PYTHONPATH": str(bare)}).returncode == 1
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
    for command in ("launch", "status"):
        refused = ask(python, command, "x", where=tmp_path, seen=bare)
        assert refused.returncode == 1 and "pip install 'torchrl_reg[recipes,slurm,report]'" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_launch_and_status_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    python, seen = installed(wheel, tmp_path / "venv"), Path(sysconfig.get_paths()["purelib"])
    short = ("+sweep.base.algo.total_frames=600", "+sweep.base.algo.learning_starts_frames=200")
    few = ("+sweep.base.run.eval_episodes=1", "sweep.seeds=1", "sweep.grid.env=[cartpole]")
    done = ask(python, "launch", "sweep=dqn_versus_m_dqn", "cluster=local", *short, *few, where=tmp_path, seen=seen)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 2 done" in done.stdout and "torchrl-reg status" in done.stdout
    status = ask(python, "status", "dqn_versus_m_dqn", where=tmp_path, seen=seen)
    assert status.returncode == 0 and "2 runs: 2 done" in status.stdout, status.stderr
    copied = next((tmp_path / "results/dqn_versus_m_dqn/code").iterdir())
    assert copied.name.startswith("unknown-") and (copied / "recipes/m_dqn.py").is_file()
