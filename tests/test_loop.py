"""The loop with a counting model: what early stopping keeps, what a restart remembers."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.core import errors
from w2s_jax.store.checksums import damage
from w2s_jax.store.trees import abstract
from w2s_jax.training import checkpoints, loop
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.state import HISTORY, TrainState, rounded_up

STEPS = 12


class Recorder:
    """A reporter that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def rows(self, rows):
        self.heard += rows

    def progress(self, step, row, docs_per_second):
        assert docs_per_second > 0


class Numbers:
    """Data that check that each step asks once, in order; a dispatch is one step, or a block."""

    def __init__(self, blocks=False):
        self.next, self.blocks = 0, blocks

    def advance(self, step, state, first, last):
        each = last - first if self.blocks else 1
        for start in range(first, last, each):
            for number in range(start, start + each):
                state = step(state, self.at(number))
        return state

    def at(self, step):
        assert step == self.next
        self.next += 1
        return {}

    def position(self):
        return {"next": self.next}

    def restore(self, position):
        self.next = position["next"]


def fresh_state():
    """Its only parameter counts the updates."""
    return TrainState(
        params={"count": jnp.float32(0)},
        opt_state=(),
        step=jnp.int32(0),
        failed_step=jnp.int32(-1),
        history=jnp.zeros((rounded_up(STEPS), len(HISTORY))),
    )


@jax.jit
def count_up(state, batches):
    return dataclasses.replace(
        state,
        params={"count": state.params["count"] + 1},
        step=state.step + 1,
        history=state.history.at[state.step, 0].set(state.params["count"]),
    )


def scripted(scores):
    """An evaluation whose score at step n is scores[n]."""

    def evaluate(params):
        score = scores[int(params["count"])]
        return [{"agreement": score, "score": [score]}]

    return evaluate


def train(step, state, numbers, plan, recorder, **options):
    return loop.train(step, state, numbers, plan, [recorder], **options)


def schedule(**changes):
    plan = loop.Schedule(STEPS, batch_size=4, eval_every=3, select=True)
    return dataclasses.replace(plan, **changes)


@pytest.mark.parametrize(
    "scores,best",
    [
        ({3: 0.5, 6: 0.9, 9: 0.8, 12: 0.7}, 6),
        ({3: 0.5, 6: 0.6, 9: 0.8, 12: 0.9}, 12),
        ({3: 0.9, 6: 0.6, 9: 0.9, 12: 0.9}, 3),  # the earliest on a tie
    ],
)
def test_the_parameters_of_the_best_evaluation_are_kept(scores, best):
    recorder = Recorder()
    state, params, stats = train(
        count_up, fresh_state(), Numbers(), schedule(), recorder, evaluate=scripted(scores)
    )
    assert int(params["count"]) == stats.members[0].best_step == best
    assert int(state.params["count"]) == STEPS
    seen = {r["step"]: r["agreement"] for r in recorder.heard if r["split"] == "validation"}
    assert seen == scores


def test_without_selection_the_last_parameters_count():
    scores = {3: 0.9, 6: 0.1, 9: 0.1, 12: 0.1}
    _, params, _ = train(
        count_up,
        fresh_state(),
        Numbers(),
        schedule(select=False),
        Recorder(),
        evaluate=scripted(scores),
    )
    assert int(params["count"]) == STEPS


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_restart_remembers_the_best_step_and_every_row(tmp_path, stop_at, blocks):
    scores = {3: 0.9, 6: 0.2, 9: 0.3, 12: 0.4}
    whole = Recorder()
    train(
        count_up, fresh_state(), Numbers(blocks), schedule(), whole,
        evaluate=scripted(scores),
    )  # fmt: skip
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == stop_at

    saved = Checkpoints(tmp_path, keep=2)
    with pytest.raises(errors.Interrupted):
        train(
            count_up, fresh_state(), Numbers(blocks), schedule(), Recorder(),
            checkpoints=saved, evaluate=scripted(scores), should_stop=should_stop,
        )  # fmt: skip
    saved.close()
    # Were the step that was best evaluated again, it would not be found good.
    later = scripted({n: score for n, score in scores.items() if n > 3})
    again, saved, unused = Recorder(), Checkpoints(tmp_path, keep=2), fresh_state()
    _, params, stats = train(
        count_up, unused, Numbers(blocks), schedule(), again,
        checkpoints=saved, evaluate=later,
    )  # fmt: skip
    saved.close()
    # Two states may not fit into memory, whoever still refers to the one that is not needed.
    assert unused.params["count"].is_deleted() and unused.history.is_deleted()
    assert int(params["count"]) == stats.members[0].best_step == 3
    assert again.heard == whole.heard


def test_a_block_lasts_seconds_however_rarely_rows_are_logged(monkeypatch):
    """So that a request to stop is heard soon."""
    monkeypatch.setattr(loop, "BLOCK_SECONDS", 0.05)
    monkeypatch.setattr(loop, "FIRST_BLOCK", 2)
    asked = []

    def slow(state, batches):
        time.sleep(0.02)
        return count_up(state, batches)

    def should_stop():
        asked.append(time.monotonic())
        return False

    rare = schedule(eval_every=None, select=False)
    train(slow, fresh_state(), Numbers(), rare, Recorder(), should_stop=should_stop)
    assert len(asked) >= 5
    assert np.diff(asked).max() < 0.5


def test_a_failed_step_leaves_the_data_at_the_last_good_one(tmp_path):
    """The next try gets the batch that failed, and those after it that were dispatched in vain."""

    @jax.jit
    def fails_at_7(state, batches):
        good = state.step < 7
        after = count_up(state, batches)
        return jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            dataclasses.replace(after, failed_step=state.failed_step),
            dataclasses.replace(state, failed_step=state.step),
        )

    saved, numbers = Checkpoints(tmp_path, keep=2), Numbers()
    plan = schedule(eval_every=None, select=False)
    with pytest.raises(errors.TrainingFailed, match="at step 7"):
        train(fails_at_7, fresh_state(), numbers, plan, Recorder(), checkpoints=saved)
    saved.close()
    assert numbers.next == 7
    again, saved = Numbers(), Checkpoints(tmp_path, keep=2)
    state, _, _ = train(count_up, fresh_state(), again, plan, Recorder(), checkpoints=saved)
    saved.close()
    assert int(state.step) == again.next == STEPS


class Notebook:
    """A profiler that notes when it is called, in a list that it shares with the steps."""

    def __init__(self, start, stop):
        self.start, self.stop, self.notes = start, stop, []

    def begin(self):
        self.notes.append("begin")

    def end(self):
        self.notes.append("end")


@pytest.mark.parametrize("blocks", [False, True])
def test_a_profiler_sees_its_steps_and_no_others(blocks):
    """An evaluation at step 6 cuts the block."""
    profiler = Notebook(4, 7)

    def noted(state, batches):
        profiler.notes.append(int(state.step))
        return count_up(state, batches)

    scores = dict.fromkeys((3, 6, 9, 12), 0.5)
    train(
        noted, fresh_state(), Numbers(blocks), schedule(), Recorder(),
        evaluate=scripted(scores), profiler=profiler,
    )  # fmt: skip
    assert profiler.notes == [0, 1, 2, 3, "begin", 4, 5, 6, "end", 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "done,start,stop,notes",
    [
        (0, 0, 100, ["begin", "end"]),
        (8, 4, 10, ["begin", "end"]),
        (8, 4, 7, []),
        (0, 50, 60, []),
    ],
)
def test_a_profile_begins_late_on_a_resumed_run_and_ends_with_the_run(done, start, stop, notes):
    profiler, numbers = Notebook(start, stop), Numbers()
    numbers.next = done
    state = dataclasses.replace(fresh_state(), step=jnp.int32(done))
    plan = schedule(eval_every=None, select=False)
    train(count_up, state, numbers, plan, Recorder(), profiler=profiler)
    assert profiler.notes == notes


def test_a_profile_ends_when_an_exception_passes():
    def broken(state, batches):
        raise RuntimeError("broken")

    profiler = Notebook(0, 5)
    with pytest.raises(RuntimeError, match="broken"):
        train(broken, fresh_state(), Numbers(), schedule(), Recorder(), profiler=profiler)
    assert profiler.notes == ["begin", "end"]


def test_the_host_s_share_is_dispatching_and_not_evaluating(monkeypatch):
    """After a first block of 2 steps, which compiles."""
    monkeypatch.setattr(loop, "FIRST_BLOCK", 2)

    def slow_to_dispatch(state, batches):
        time.sleep(0.01)
        return count_up(state, batches)

    def slow(params):
        time.sleep(0.1)
        return [{"agreement": 0.5, "score": [0.5]}]

    _, _, stats = train(
        slow_to_dispatch, fresh_state(), Numbers(), schedule(), Recorder(), evaluate=slow
    )
    assert 0.1 <= stats.host_seconds < stats.seconds - 0.2


class SlowCheckpoints:
    """Checkpoints of which all takes a while, that remember what they were given."""

    def __init__(self):
        self.metas = []

    def newest(self):
        return None

    def save(self, step, trees, meta):
        time.sleep(0.05)
        self.metas.append((step, meta))

    def poll(self):
        time.sleep(0.01)

    def finish(self):
        time.sleep(0.1)


def test_what_checkpoints_cost_is_counted_and_nothing_else():
    """A checkpoint at each of three boundaries but the last, and a wait at the end."""
    saved = SlowCheckpoints()
    plan = schedule(checkpoint_seconds=0.0)

    def slow(params):
        time.sleep(0.1)
        return [{"agreement": 0.5, "score": [0.5]}]

    _, _, stats = train(
        count_up, fresh_state(), Numbers(), plan, Recorder(), checkpoints=saved, evaluate=slow
    )
    assert [step for step, _ in saved.metas] == [3, 6, 9] and stats.checkpoints == 3
    assert 0.29 <= stats.checkpoint_seconds < 0.5
    # Each includes itself and the seconds of those before it.
    stats_of = [meta["stats"] for _, meta in saved.metas]
    assert [stats["checkpoints"] for stats in stats_of] == [1, 2, 3]
    assert stats_of[0]["checkpoint_seconds"] < 0.05 < 0.1 < stats_of[2]["checkpoint_seconds"]


def test_the_cost_of_checkpoints_survives_a_restart(tmp_path):
    plan = schedule(eval_every=None, select=False)
    stats = loop.LoopStats(5.0, 1.0, 1.0, 100.0, 7, [loop.MemberProgress()])
    state = dataclasses.replace(fresh_state(), step=jnp.int32(4))
    saved = Checkpoints(tmp_path, keep=2)
    meta = {"stats": dataclasses.asdict(stats), "data": {"next": 4}}
    saved.save(4, loop._trees(loop._Run(state, None, stats)), meta)
    saved.finish()
    _, _, after = train(count_up, fresh_state(), Numbers(), plan, Recorder(), checkpoints=saved)
    saved.close()
    assert after.checkpoints == 7
    assert 0 <= after.checkpoint_seconds - 100 < 5 and after.seconds > 5


def test_a_manifest_is_written_beside_training(tmp_path, monkeypatch):
    """Sums of large files take seconds."""
    write = checkpoints.write_manifest

    def slow(folder):
        time.sleep(0.5)
        write(folder)

    monkeypatch.setattr(checkpoints, "write_manifest", slow)
    saved = Checkpoints(tmp_path, keep=2)
    saved.save(1, {"state": {"x": jnp.arange(8.0)}}, {})
    polls = 0
    while saved.saving is not None:
        started = time.monotonic()
        saved.poll()
        assert time.monotonic() - started < 0.3
        polls += 1
        time.sleep(0.01)
    assert polls > 10 and damage(tmp_path / "1") is None
    saved.save(2, {"state": {"x": jnp.arange(8.0)}}, {})
    saved.finish()
    assert damage(tmp_path / "2") is None
    saved.close()


def test_steps_that_go_on_in_the_same_memory_change_nothing_that_is_being_saved(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def step(tree):
        return jax.tree.map(lambda x: x + 1, tree)

    tree = step({name: jnp.zeros((1000, 1000)) for name in "abcd"})
    wanted = abstract(tree)
    saved, steps = Checkpoints(tmp_path, keep=2), 0
    saved.save(1, {"state": tree}, {})
    while not saved.saving.done():
        tree = jax.block_until_ready(step(tree))
        steps += 1
    saved.finish()
    found, _ = saved.restore(1, {"state": wanted})
    saved.close()
    assert steps
    assert all((np.asarray(x) == 1).all() for x in found["state"].values())


@pytest.mark.parametrize("waits", [True, False])
def test_a_manifest_that_cannot_be_written_is_told(tmp_path, monkeypatch, waits):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_manifest", full)
    saved = Checkpoints(tmp_path, keep=2)
    saved.save(1, {"state": {"x": jnp.arange(8.0)}}, {})
    with pytest.raises(errors.StorageError, match="saving a checkpoint: no space left"):
        while not waits:
            saved.poll()
        saved.finish()
    saved.close()
    again = Checkpoints(tmp_path, keep=2)
    assert again.newest() is None
    again.close()


def test_no_more_checkpoints_are_kept_than_asked_for_nor_their_manifests(tmp_path):
    saved = Checkpoints(tmp_path, keep=3)
    for step in range(1, 7):
        saved.save(step, {"state": {"x": jnp.full(8, step)}}, {})
    saved.finish()
    saved.close()
    wanted = {"4", "5", "6", "4.manifest.json", "5.manifest.json", "6.manifest.json"}
    assert {path.name for path in tmp_path.iterdir()} == wanted
