"""Reads what was appended to a ``metrics.jsonl`` since the last look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_REMEMBERED = 256


class Tail:
    """Rows of a growing file of JSON lines, each handed out once.

    A resumed run cuts its file back to its last checkpoint and writes on: what lies before the place reached is then no
    longer what was read, and :meth:`read` says so by starting over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._before = b""  # the last bytes in front of the offset

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New rows, and whether they start from the beginning because the file was cut.

        A last line still being written waits for its end; a line that is no JSON object is passed over.
        """
        try:
            with self.path.open("rb") as file:
                cut = not self._continues(file)
                if cut:
                    self._offset, self._before = 0, b""
                file.seek(self._offset)
                new = file.read()
        except OSError:
            cut = self._offset > 0
            self._offset, self._before = 0, b""
            return [], cut
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        self._before = (self._before + complete)[-_REMEMBERED:]
        return [row for line in complete.splitlines() if (row := _row(line)) is not None], cut

    def _continues(self, file: Any) -> bool:
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("frames"), int) else None
