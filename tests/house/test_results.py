"""The tables of the pages equal those generated from recipes/results, and rows do not change unnoticed."""

from __future__ import annotations

import copy
import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
_loader = SourceFileLoader("ci_results", str(ROOT / ".ci/results"))
results = importlib.util.module_from_spec(importlib.util.spec_from_loader("ci_results", _loader))
_loader.exec_module(results)


@pytest.fixture(scope="module")
def rows() -> dict:
    return results.load()


def test_every_table_is_as_the_rows_give_it(rows: dict) -> None:
    assert results.check(rows) == [], "run .ci/results"


def test_a_deleted_or_changed_row_is_named(rows: dict) -> None:
    for name, of in rows.items():
        for place in range(0, len(of), max(1, len(of) // 3)):
            cut = rows | {name: of[:place] + of[place + 1 :]}
            found = results.check(cut)
            assert any(f"`{name}.jsonl`" in each for each in found), (name, place)
            assert all(each.endswith("a row was changed or deleted.") for each in found)
    changed = copy.deepcopy(rows)
    (row,) = [
        r for r in changed["before"] if (r.get("method"), r.get("env"), r.get("seed")) == ("c51", "mountaincar", 2)
    ]
    row["scores"]["greedy"][0] = -200.0
    sentence = "recipes/RESULTS.md, table greedy frames: the page has '| MountainCar | C51 |"
    assert any(each.startswith(sentence) and "4 of 10 above -200" in each for each in results.check(changed))


def test_an_edited_table_is_named(rows: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for page in results.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    (tmp_path / "recipes/claims.yaml").write_text((ROOT / "recipes/claims.yaml").read_text())
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.check(rows) == []
    methods = tmp_path / "torchrl_reg/METHODS.md"
    methods.write_text(methods.read_text().replace("MountainCar -188 (10)", "MountainCar -150 (10)"))
    (said,) = results.check(rows)
    assert said.startswith("torchrl_reg/METHODS.md, table result dqn: the page has") and "-150 (10)" in said
    assert "-188 (10)" in said.partition("the rows give")[2]


def test_numbers_in_the_prose_trace_to_rows(rows: dict) -> None:
    """Numbers with another source: a range of torch versions, and a coverage (tests/lab/analysis/test_inference.py)."""
    assert set(results.untraced(rows)) <= {"README.md: 2.15", "recipes/RESULTS.md: 78"}  # a version, a coverage


def test_the_rows_are_small_and_each_says_where_it_comes_from(rows: dict) -> None:
    assert sum(path.stat().st_size for path in results.RESULTS.glob("*")) < 1_000_000
    for of in rows.values():
        assert all("config" in row or row.get("source") or row.get("study") == "exact" for row in of)
    sources = {row["source"] for row in rows["before"]}
    assert sources == {"RESULTS.md at 03c354f", "agents/trained"}
    assert not [row for row in rows["before"] if "curve" in row]


def test_tests_and_sweeps_that_claims_name_are_there() -> None:
    for claim in results.read_yaml(ROOT / "recipes/claims.yaml")["claims"]:
        experiment = claim["experiment"]
        files = [*experiment.get("tests", ())]
        files += [f"slurm/conf/sweep/{experiment[key]}.yaml" for key in ("search", "sweep") if key in experiment]
        assert not [file for file in files if not (ROOT / file).exists()], claim["id"]


def test_scores_of_shipped_agents_are_theirs(rows: dict) -> None:
    from torchrl_reg.lab.agents.trained import facts_of, trained_agents

    for name, file in trained_agents().items():
        method, _, env = name.partition("/")
        own = [
            r for r in rows["before"] if r["source"] == "agents/trained" and (r["method"], r["env"]) == (method, env)
        ]
        shipped = facts_of(file)["training"]["scores"]
        assert [row["scores"]["greedy"][0] for row in own] == pytest.approx(shipped, rel=1e-4), name


def test_a_benchmark_s_rows_make_its_table(rows: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"name": "ours", "amount": 1234.5, "unit": "steps/s", "ratio": 1.5, "reference": "by hand", "rounds": 5}
    row |= {"processor": "A", "commit": "abcdefgh", "table": "CartPole"}
    (tmp_path / "cartpole.json").write_text(json.dumps([row]))
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    line = "| **CartPole**; 5 rounds on A, abcdefg | ours | 1,234 steps/s | 1.50 |"
    assert line in results.Evidence(rows).benchmarks("")


def test_the_atlas_shows_settings_and_fresh_seeds(rows: dict, tmp_path: Path) -> None:
    from tests.lab.analysis.test_claims import runs, search

    assert results.Evidence({}).atlas("") == "Not run yet."
    made = search("pqn_regularized", lambda arm, task, place: 10.0 if arm == "peng" else 10.0 + place)
    made |= runs("pqn_regularized", lambda arm, task: 100.0 if arm == "peng" else 150.0)
    evidence = results.Evidence(made)
    assert results.Evidence(made | {"answers_pqn_search": made["answers_pqn_search"][1:]}).atlas("") == "Not run yet."
    points = evidence._atlas
    assert [setting for setting, _ in points["entropy_corrected"]["settings"]] == ["1", "10", "100"]
    assert points["corrected"]["settings"][2][1] == pytest.approx(13 / 11)
    assert points["corrected"]["fresh"][0] == pytest.approx(1.5, rel=0.02)
    assert "pqn_atlas.png" in evidence.atlas("")
    evidence.draw_atlas(tmp_path / "atlas.png")
    assert (tmp_path / "atlas.png").stat().st_size > 10_000
    assert "| `answers_pqn_search` | 5 games | entropy, corrected | tau 1: " in evidence.choices("")
