"""Results of an experiment's runs, kept while others train, so that an interrupted command trains only what is left."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.files import write_atomically


@dataclass(frozen=True)
class KeptResults:
    """A JSON file of what runs measured, which ``remove`` deletes once the report is written."""

    path: Path
    """It need not exist."""
    device: str
    """The runs' device; results of another one are not found."""

    def find(self, run: Any) -> dict[str, Any] | None:
        """The result of a run, a dataclass instance, or None if it is not there."""
        return next((entry["result"] for entry in self._entries() if entry["run"] == self._settings(run)), None)

    def add(self, run: Any, result: dict[str, Any]) -> None:
        """Write the result of a run."""
        entries = [*self._entries(), {"run": self._settings(run), "result": result}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path) as scratch:
            scratch.write_text(json.dumps(entries, indent=1) + "\n")

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def _entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []
        return entries

    def _settings(self, run: Any) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps({**asdict(run), "device": self.device}))
        return settings
