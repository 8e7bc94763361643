"""Values that must not change, in tests/frozen/, and how tests compare with them.

If a value differs, the code is wrong, not the file. After an intended change (a new flag, a raised
semantics version), run the tests with W2S_REFREEZE=1 to rewrite the values, and review the diff
before committing it.
"""

import json
import os
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parent / "frozen"


def frozen(name: str) -> dict[str, Any]:
    """Return the contents of tests/frozen/<name>.json; {} if it does not exist."""
    path = FROZEN / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(name: str, found: dict[str, Any]) -> None:
    """Compare entries with the frozen ones; with W2S_REFREEZE set, freeze them instead.

    Args:
      name: name of the file.
      found: some of its entries, JSON-serialisable.

    Raises:
      AssertionError: an entry differs; lists all leaves that differ.
    """
    found = json.loads(json.dumps(found))
    kept = frozen(name)
    if os.environ.get("W2S_REFREEZE"):
        FROZEN.mkdir(exist_ok=True)
        text = json.dumps(kept | found, indent=1, sort_keys=True)
        (FROZEN / f"{name}.json").write_text(text + "\n")
        return
    wrong = [
        line for key, value in found.items() for line in _differences(kept.get(key), value, key)
    ]
    assert not wrong, "\n".join([f"tests/frozen/{name}.json:", *wrong])


def _differences(old: Any, new: Any, where: str) -> list[str]:
    """Return one line per leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{where} / {key}")
        ]
    return [] if old == new else [f"{where}: {old!r}, now {new!r}"]
