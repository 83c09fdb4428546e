"""Results of an evaluation so far, in files of JSON lines: a killed run resumes, a finished one is only read.

<name>.jsonl            a row for each item, each with a `key`
<name>.settings.json    what the rows depend on, and whether they are all there
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefkd.data.fingerprints import Fingerprint, same_part
from prefkd.data.sources import RECORDS
from prefkd.errors import PrefkdError
from prefkd.files import whole
from prefkd.ranks import Ranks


class Records:
    """The rows of one model under one task.

    Args:
        path: The file of JSON lines.
        fingerprint: Everything that the rows depend on. Rows that depend on something else are thrown away at the first
            `add`. Parts that are unknown now are left out of it, and not compared.
        ranks: The main rank reads and writes; the others have the same rows in memory.

    Attributes:
        rows: The rows by key, in the order in which they were found.
        finished: Whether no row is missing.
        others: The parts in which rows on disk depend on something else; empty where there are no such rows.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, ranks: Ranks):
        self.path = path
        self.fingerprint = fingerprint
        self.writes = ranks.is_main
        self._settings = path.with_suffix(RECORDS)
        self.rows: dict[str, dict[str, Any]]
        self.finished: bool
        self.others: list[str]
        self.rows, self.finished, self._is_new, self.others = ranks.gather(self._read() if self.writes else None)[0]

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep some rows, on disk at once."""
        if self._is_new:
            self._begin()
        rows = [dict(row) for row in rows]
        self.rows |= {row["key"]: row for row in rows}
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def finish(self) -> None:
        """Say that all rows are there."""
        if self._is_new:
            self._begin()
        self.finished = True
        self._write_settings()

    def _begin(self) -> None:
        self._is_new = False
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")
        self._write_settings()

    def _write_settings(self) -> None:
        if self.writes:
            text = json.dumps({"finished": self.finished, **self.fingerprint}, indent=2, ensure_ascii=False)
            with whole(self._settings) as unfinished:
                unfinished.write_text(text + "\n", encoding="utf-8")

    def _read(self) -> tuple[dict[str, dict[str, Any]], bool, bool, list[str]]:
        """The rows on disk, whether they are all, whether there are none that can be used, and `others`."""
        try:
            stored = json.loads(self._settings.read_text(encoding="utf-8"))
            parts = self.fingerprint.items()
            others = [name for name, value in parts if not same_part(name, stored.get(name), value)]
            content = self.path.read_bytes()
        except (OSError, ValueError, AttributeError):
            return {}, False, True, []
        if others:
            return {}, False, True, others if content else []
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # killed while it wrote; what is written next begins a line
            self.path.write_bytes(whole)
        try:
            return {row["key"]: row for row in map(json.loads, whole.splitlines())}, stored["finished"], False, []
        except (ValueError, KeyError, TypeError) as error:
            raise PrefkdError(f"{self.path} is damaged; remove it, and it is computed again") from error
