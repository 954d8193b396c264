"""Reading YAML and JSON files."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_reg.lab.documents import flat, read_json, read_yaml
from torchrl_reg.lab.errors import UserError


def test_flat_and_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most 10000 settings"):
        flat({str(i): i for i in range(10_001)})
    (tmp_path / "x.yaml").write_text("a: 'is * a star?'\nb: [[1, 2], {c: [3]}]\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "is * a star?", "b": [[1, 2], {"c": [3]}]}
    assert read_yaml(tmp_path / "absent.yaml") is None and read_json(tmp_path / "absent.json") is None
    (tmp_path / "x.yaml").write_text("a: !!python/object/apply:pathlib.PosixPath\n- /\n- x\n- 'y'\n")  # OmegaConf's
    assert read_yaml(tmp_path / "x.yaml") == {"a": "/x/y"}
    (tmp_path / "x.yaml").write_text("a: !!python/object/apply:os.system [ls]\n")
    with pytest.raises(UserError, match="must be YAML"):
        read_yaml(tmp_path / "x.yaml")
