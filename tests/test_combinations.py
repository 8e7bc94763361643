"""Combinations of features that are tested one by one elsewhere."""

import json

import numpy as np
import pytest
from feature_files import write
from refusals import error

import w2s_jax
from w2s_jax import testing
from w2s_jax.config.validation import validate
from w2s_jax.data import register_features
from w2s_jax.data.feature_sources import FEATURES
from w2s_jax.execution.results import NO_CEILING
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.sweep.planning import SharedResolver


def write_records(folder, split, rows, ids=()):
    folder.mkdir(parents=True, exist_ok=True)
    named = [{"id": id_} | row for id_, row in zip(ids, rows, strict=True)] if ids else rows
    lines = "".join(json.dumps(row) + "\n" for row in named)
    (folder / f"{split}.jsonl").write_text(lines)


def config_of(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    config.task.name, config.pretrain.source, config.losses = "mine", None, ("xent",)
    config.task.validation_docs, config.mesh.data = 0, 1
    config.protocol.early_stopping = "none"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def on_features(data_dir, model, **changes):
    given = {"strong__model": model, "strong__train__adapt": "probe", "probe__batch_size": 16}
    return validate(config_of(data_dir, **given, **changes))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """`mine` with ids, templates and levels, and other test sets by what their ids are."""
    folder = tmp_path_factory.mktemp("data")
    rows = testing.tiny_records(160, seed=3)
    rows = [row | {"level": n % 4} for n, row in enumerate(rows)]
    ids = [str(n) for n in range(160)]
    write_records(folder / "mine", "train", rows[:100], ids[:100])
    write_records(folder / "mine", "test", rows[100:], ids[100:])
    templates = {"good": {"text": "{text}\nGood?", "classes": ["no", "yes"]}}
    (folder / "mine" / "templates.json").write_text(json.dumps(templates))
    others = testing.tiny_records(40, seed=5)
    write_records(folder / "same_ids", "test", others, ids[100:140])
    write_records(folder / "own_ids", "test", others, [f"other {n}" for n in range(40)])
    write_records(folder / "copy", "test", rows[100:140], ids[100:140])
    three = testing.tiny_records(160, seed=7, labels=("bad", "good", "odd"))
    write_records(folder / "three", "train", three[:100])
    write_records(folder / "three", "test", three[100:])
    return folder


# --- features and other test sets ----------------------------------------------------------------


def test_documents_of_other_tasks_with_ids_of_the_runs_own_do_not_get_their_features(
    data_dir, tmp_path
):
    ids = [*map(str, range(160)), *(f"other {n}" for n in range(40))]
    values = np.arange(200 * 4, dtype=np.float32).reshape(200, 4)
    given = f"features:{write(tmp_path / 'rows.npz', ids, values)}"
    sets = {"protocol__balance_test": False}
    message = error(resolve, on_features(data_dir, given, task__test_tasks=("same_ids",), **sets))
    assert message.startswith("task.test_tasks: same_ids: strong.model: features:rows.npz: ")
    assert "40 of 40 documents share theirs" in message and "w2s data ids" in message
    found = resolve(on_features(data_dir, given, task__test_tasks=("own_ids",), **sets))
    rows = found.roles["strong"].features.read("test:own_ids")
    assert sorted(rows[:, 0, 0]) == (4.0 * np.arange(160, 200)).tolist()
    # The same document may well have the same features.
    found = resolve(on_features(data_dir, given, task__test_tasks=("copy",), **sets))
    rows = found.roles["strong"].features.read("test:copy")
    assert sorted(rows[:, 0, 0]) == (4.0 * np.arange(100, 140)).tolist()


def test_two_other_test_sets_with_the_same_ids_do_not_share_features(data_dir, tmp_path):
    write_records(data_dir / "again", "test", testing.tiny_records(40, seed=8),
                  [f"other {n}" for n in range(40)])  # fmt: skip
    ids = [*map(str, range(160)), *(f"other {n}" for n in range(40))]
    given = f"features:{write(tmp_path / 'rows.npz', ids, np.ones((200, 4), np.float32))}"
    settings = on_features(data_dir, given, task__test_tasks=("own_ids", "again"))
    assert "test_tasks: again: strong.model" in error(resolve, settings)


def test_a_function_that_returns_another_width_on_another_test_set(data_dir):
    register_features(
        "by_task", lambda docs: np.ones((len(docs), 3 if "level" in docs[0].meta else 4)), version=1
    )
    try:
        given = {"task__where": "level<4", "task__test_tasks": ("own_ids",)}
        settings = on_features(data_dir, "features:by_task", **given)
        message = error(resolve, settings)
    finally:
        FEATURES.pop("by_task")
    assert message == (
        "task.test_tasks: own_ids: strong.model: features:by_task: 4 numbers per text, but 3 for "
        "the run's own documents"
    )


# --- sweeps --------------------------------------------------------------------------------------


def test_points_of_a_sweep_that_differ_in_methods_read_the_templates_of_each(data_dir):
    points = [
        {"method__name": "naive"},
        {"method__name": "prompting"},
        {"method__name": "prompting", "method__prompting__templates": "task"},
    ]
    shared = SharedResolver()
    for changes in points:
        settings = validate(config_of(data_dir, **changes))
        own, found = resolve(settings), shared(settings)
        assert found.roles["strong"].prompts.keys() == own.roles["strong"].prompts.keys()
        assert found.digests == own.digests and found.notes == own.notes
        assert plan(found).phases == plan(own).phases


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("three", {"losses": ("buffered_confidence",)}, "buffered_confidence"),
        ("three", {"method__name": "contrast_consistent_search"}, "works with two classes"),
        ("mine", {"method__name": "answer_agreement"}, "is about completions"),
    ],
)
def test_later_points_of_a_sweep_are_checked_as_the_first_is(data_dir, task, changes, message):
    shared = SharedResolver()
    shared(validate(config_of(data_dir, task__name=task)))
    settings = validate(config_of(data_dir, task__name=task, **changes))
    refusal = error(resolve, settings)
    assert message in refusal and error(shared, settings) == refusal


# --- conditions ----------------------------------------------------------------------------------


def test_an_empty_condition_on_test_documents_keeps_all(data_dir):
    given = {"task__where": "level<2", "protocol__balance": False, "protocol__balance_test": False}
    sizes = {}
    for condition in (None, ""):
        found = resolve(validate(config_of(data_dir, task__test_where=condition, **given)))
        splits = found.roles["weak"].splits
        sizes[condition] = len(splits["slice1"]) + len(splits["slice2"]), len(splits["test"])
    assert sizes == {None: (50, 30), "": (50, 60)}
    assert "is empty" in error(validate, config_of(data_dir, task__template=""))


# --- unlabelled documents ------------------------------------------------------------------------


def test_without_halves_too_no_ceiling_learns_an_unlabelled_pool(data_dir, tmp_path):
    rows = testing.tiny_records(60, seed=11)
    write_records(data_dir / "mine", "pool", [{"text": row["text"]} for row in rows],
                  [f"pool {n}" for n in range(60)])  # fmt: skip
    ids = [*(str(n) for n in range(160)), *(f"pool {n}" for n in range(60))]
    labels = write(tmp_path / "p.npz", ids, np.full((220, 2), 0.5, np.float32), "p")
    given = {"weak__labels": str(labels), "protocol__halves": "none", "task__unlabelled": "pool"}
    assert plan(resolve(validate(config_of(data_dir, **given)))).ceiling is None
    assert "halves" not in NO_CEILING.split("; ")[0]  # whichever it is
    settings = validate(config_of(data_dir, **given, method__name="saliency"))
    message = error(lambda: plan(resolve(settings)))
    assert "needs a ceiling, and with protocol.halves='none'" in message


# --- methods -------------------------------------------------------------------------------------


@pytest.mark.medium
def test_synthetic_supervisors_of_a_probe_where_the_ceiling_learns_the_students_slice(
    data_dir, tmp_path
):
    """A ceiling on slice 1 needs features that no other phase of such a run does."""
    given = {"strong__train__adapt": "probe", "probe__batch_size": 16, "probe__steps": 20}
    given |= {"method__name": "synthetic", "method__synthetic__structures": ("strong_confident",)}
    result = w2s_jax.run(config_of(data_dir, **given), tmp_path / "run")
    assert result["students"]["xent+synthetic_strong_confident"]["n"] == 60
    # Those of runs without the method have the same phases as ever.
    naive = plan(resolve(validate(config_of(data_dir, **given | {"method__name": "naive"}))))
    own = {stage["phase"] for stage in result["stages"]}
    assert {phase.name for phase in naive.phases} <= own
