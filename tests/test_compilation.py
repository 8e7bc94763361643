"""Compiled programs on disk: found by the next process, harmless when damaged; the clock."""

import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from w2s_jax.profiling import compilation
from w2s_jax.profiling.compilation import COMPILE_EVENTS, CompileClock

#: Compiles one program, and prints the state of the cache.
CHILD = """
import json, sys, time
import jax
from w2s_jax.profiling import compilation
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
if "--own" in sys.argv:
    jax.config.update("jax_compilation_cache_dir", sys.argv[-1])
clock = compilation.compile_clock()
folder = compilation.enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
assert compilation.enable_cache() == folder
value = float(jax.jit(lambda x: jax.numpy.sin(x) + x @ x)(jax.numpy.eye(8)).sum())
count = lambda name: events.count("/jax/compilation_cache/cache_" + name)
print(json.dumps({
    "folder": folder and str(folder), "used": jax.config.jax_compilation_cache_dir,
    "hits": count("hits"), "misses": count("misses"), "value": value,
    "bound": jax.config.jax_compilation_cache_max_size, "compiling": clock.seconds,
}))
"""


def child(*arguments, **env):
    """Return the output of `CHILD`, and its stderr."""
    without = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        env=without | {name: str(value) for name, value in env.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.medium
def test_the_next_process_finds_what_was_compiled_and_damage_does_no_harm(tmp_path):
    first, stderr = child(W2S_CACHE_DIR=tmp_path)
    folder = next((tmp_path / "compiled").glob("cpu-*"))
    programs = {p.name: p.read_bytes() for p in folder.glob("*-cache")}
    assert first["folder"] == first["used"] == str(folder) and stderr == ""
    assert first["hits"] == 0 and first["misses"] == len(programs) > 0
    assert first["bound"] == 4 * 2**30
    # No warning about machine features either.
    second, stderr = child(W2S_CACHE_DIR=tmp_path)
    assert (second["hits"], second["misses"], stderr) == (len(programs), 0, "")
    assert second["value"] == first["value"] and 0 < second["compiling"] < first["compiling"]
    # A kill during a write: no time of last use, and half a program; it is compiled again.
    name = next(n for n in programs if "lambda" in n)
    (folder / name).write_bytes(programs[name][:100])
    (folder / name.replace("-cache", "-atime")).unlink()
    mended, stderr = child(W2S_CACHE_DIR=tmp_path)
    assert (mended["hits"], mended["misses"], stderr) == (len(programs) - 1, 1, "")
    assert len((folder / name).read_bytes()) > 1000
    # A flipped bit is noticed, and costs a warning and the compiling.
    damaged = bytearray(programs[name])
    damaged[len(damaged) // 2] ^= 1
    (folder / name).write_bytes(damaged)
    other, stderr = child(W2S_CACHE_DIR=tmp_path)
    assert other["hits"] == len(programs) - 1 and other["value"] == first["value"]
    assert "Error reading persistent compilation cache entry" in stderr


@pytest.mark.medium
def test_the_cache_is_off_where_the_user_says_so_and_theirs_is_left_alone(tmp_path):
    off, _ = child(W2S_CACHE_DIR="")
    assert off["folder"] is None and off["used"] is None and off["misses"] == 0
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for made in (
        child(W2S_CACHE_DIR=ours, JAX_COMPILATION_CACHE_DIR=theirs),
        child("--own", theirs, W2S_CACHE_DIR=ours),
    ):
        assert made[0]["folder"] is None and made[0]["used"] == str(theirs)
        assert made[0]["bound"] == -1 and made[0]["misses"] + made[0]["hits"] > 0
    disabled, _ = child(W2S_CACHE_DIR=ours, JAX_ENABLE_COMPILATION_CACHE="false")
    assert disabled["folder"] is None and not ours.exists()


@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_that_cannot_be_used_costs_a_warning(tmp_path, monkeypatch, caplog, locked):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path if locked else tmp_path / "file"))
    if locked:

        def read_only(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(compilation, "_remove_unfinished", read_only)
    given = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert compilation.enable_cache() is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
    assert len(caplog.records) == 1 and "W2S_CACHE_DIR" in caplog.text


def test_programs_that_another_process_writes_are_left_alone(tmp_path):
    import filelock

    (tmp_path / "f-cache").write_bytes(b"half")
    (tmp_path / "g-cache").write_bytes(b"whole")
    (tmp_path / "g-atime").write_bytes(b"12345678")
    with filelock.FileLock(tmp_path / ".lockfile"):
        sweeper = threading.Thread(target=compilation._remove_unfinished, args=(tmp_path,))
        sweeper.start()
        sweeper.join(0.3)
        assert sweeper.is_alive() and (tmp_path / "f-cache").exists()
    sweeper.join(10)
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["g-atime", "g-cache"]


def test_the_clock_counts_no_moment_twice():
    rng = np.random.default_rng(0)
    for _ in range(50):
        clock, ticks = CompileClock(), np.zeros(100, bool)
        spans = np.sort(rng.integers(0, 100, (rng.integers(1, 20), 2)), axis=1)
        # Events are reported at their ends, by all threads.
        for start, stop in spans[np.argsort(spans[:, 1], kind="stable")].tolist():
            clock.observe(str(rng.choice(COMPILE_EVENTS)), start, stop, fun_name="f")
            ticks[start:stop] = True
        assert clock.seconds == ticks.sum()
        clock.observe("/jax/checkpoint/write", 0, 1000)
        assert clock.seconds == ticks.sum()


def test_the_clock_runs_while_jax_compiles_and_only_then():
    clock = compilation.compile_clock()
    assert compilation.compile_clock() is clock
    double = jax.jit(lambda x: 2 * x + 0.125)
    x = jax.numpy.ones(3)
    before = clock.seconds
    double(x)
    after = clock.seconds
    assert after > before
    double(x)
    assert clock.seconds == after
