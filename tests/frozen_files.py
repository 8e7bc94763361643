"""Numbers and names that must not change, in tests/frozen/, and how a test holds against them.

They are frozen on purpose: where one differs, the code is wrong, not the file. Where a change is
meant (a flag more, a semantics version raised), W2S_REFREEZE=1 writes anew what the tests that run
then find; look at the difference before it is committed.
"""

import json
import os
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parent / "frozen"


def frozen(name: str) -> dict[str, Any]:
    """What tests/frozen/<name>.json holds; {} if it is not there."""
    path = FROZEN / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(name: str, found: dict[str, Any]) -> None:
    """Sees that the entries `found` are as they are frozen; or freezes them, if that is asked for.

    Args:
      name: of the file.
      found: some of its entries, JSON-ready.

    Raises:
      AssertionError: an entry differs; says in what, leaf by leaf.
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
    """A line for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{where} / {key}")
        ]
    return [] if old == new else [f"{where}: {old!r}, now {new!r}"]
