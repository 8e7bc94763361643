"""Eight simulated CPU devices for every test, and where to find real data."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests leave nothing in the user's cache of tokens.
os.environ["W2S_CACHE_DIR"] = ""
# No test asks a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the time goes into compiling small programs, a third of that into LLVM's optimisations.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Programs are compiled once for all workers, for the processes that tests start, and for the next
# time. JAX keys them by program, version and flags.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

#: The files that take longest, with any option -m. They come first, so that no worker is left with
#: one at the end.
LONGEST = (
    "test_run_methods.py",
    "test_interruptions.py",
    "test_processes_run.py",
    "test_sweep_run.py",
    "test_run_pretrained.py",
    "test_run.py",
    "test_run_population.py",
    "test_loss_state.py",
    "test_step.py",
    "test_vocabulary.py",
    "test_frozen_step.py",
    "test_population.py",
    "test_sharding.py",
    "test_attention.py",
    "test_families_torch.py",
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers from the PyTorch peers (tests/golden/README.md says how they were made)."""
    return GOLDEN


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs whose report does not matter: it takes most of the time of one that resumes."""
    monkeypatch.setattr("w2s_jax.execution.execute.write_report", lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files to the front; the others keep their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))
