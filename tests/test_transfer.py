"""`task.test_tasks` before anything is computed: documents, refusals, and the phases planned."""

import json

import numpy as np
import pytest

from w2s_jax import testing
from w2s_jax.config import validation
from w2s_jax.core import errors
from w2s_jax.data import Task, load_task, register_task
from w2s_jax.data.documents import Document
from w2s_jax.data.splits import choose_test
from w2s_jax.data.tasks import TASKS
from w2s_jax.planning import costs
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.planning.test_sets import split_name


def write(data_dir, name, rows, split="test"):
    (data_dir / name).mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (data_dir / name / f"{split}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = testing.write_tiny_task(tmp_path_factory.mktemp("data"))
    own = testing.tiny_records(160 + 32)
    write(folder, "other", testing.tiny_records(60, seed=5))
    write(folder, "named", testing.tiny_records(40, seed=6, labels=("bad", "good")))
    write(folder, "three", testing.tiny_records(60, seed=7, labels=("bad", "good", "odd")))
    write(folder, "seen", own[:20])
    # Each in capitals: the words are the same.
    shouted = [row | {"text": row["text"].upper() + "!"} for row in own[150:170]]
    write(folder, "partly", shouted + testing.tiny_records(40, seed=8))
    write(folder, "prompts", [{"prompt": "a", "target": "b"}])
    write(folder, "pairs", [{"text_a": "a", "text_b": "b", "label": 1}])
    write(folder, "one", [row for row in testing.tiny_records(20, seed=9) if row["label"]])
    return folder


def config_of(data_dir, *sets, **changes):
    config = testing.tiny_config(data_dir)
    config.task.test_tasks = sets
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def resolved_of(*args, **changes):
    return resolve(validation.validate(config_of(*args, **changes)))


def texts_of(resolved, split, role="weak"):
    """The text of each document."""
    documents = resolved.roles[role].splits[split]
    pieces = np.split(documents.tokens_T, documents.offsets[1:-1])
    texts = [testing.TINY_TOKENIZER.decode(piece) for piece in pieces]
    return [text.removeprefix("[BOS]").removesuffix("[EOS]") for text in texts]


# --- documents -----------------------------------------------------------------------------------


def test_all_documents_of_a_test_split_are_read_by_all_models(data_dir):
    found = resolved_of(data_dir, "other")
    wanted = {row["text"]: row["label"] for row in testing.tiny_records(60, seed=5)}
    for role in ("weak", "strong"):
        documents = found.roles[role].splits["test:other"]
        assert dict(zip(texts_of(found, "test:other", role), documents.truth_N, strict=True)) == (
            wanted
        )
    assert any("test:other" in note and "60 of 60 documents" in note for note in found.notes)


def test_documents_of_slices_and_validation_are_left_out(data_dir):
    found = resolved_of(data_dir, "partly")
    kept = {row["text"] for row in testing.tiny_records(40, seed=8)}
    assert set(texts_of(found, "test:partly")) == kept
    (note,) = (n for n in found.notes if n.startswith("test:partly: removed"))
    assert note == "test:partly: removed 20 documents that are also in slice1, slice2, validation"


def test_test_docs_and_balance_apply(data_dir):
    found = resolved_of(data_dir, "other", task__test_docs=10)
    truth_N = found.roles["weak"].splits["test:other"].truth_N
    assert len(truth_N) == 10 and truth_N.sum() == 5
    found = resolved_of(data_dir, "named", task__test_docs=50)
    assert len(found.roles["weak"].splits["test:named"]) == 40
    assert "test:named: fewer documents than task.test_docs=50" in found.notes


def test_the_limit_on_tokens_applies(data_dir):
    found = resolved_of(data_dir, "other", task__max_length=12)
    documents = found.roles["weak"].splits["test:other"]
    assert documents.longest == 12 and len(documents) == 60
    found = resolved_of(data_dir, "other", task__max_length=30, task__overlong="drop")
    documents = found.roles["strong"].splits["test:other"]
    assert documents.longest <= 30 and 0 < len(documents) < 60
    assert 2 * documents.truth_N.sum() == len(documents)  # balanced after that


def test_longer_documents_do_not_change_embedded_models(data_dir):
    rows = [row | {"text": "the " * 200 + row["text"]} for row in testing.tiny_records(20, seed=10)]
    write(data_dir, "long", rows)
    model = resolved_of(data_dir).roles["strong"].model
    found = resolved_of(data_dir, "long")
    assert found.roles["strong"].model == model
    longest = model.max_positions
    assert found.roles["strong"].splits["test:long"].longest == longest
    assert f"test:long: weak: documents are limited to the {longest} positions of the model" in (
        found.notes
    )


def test_the_first_split_with_labels_is_taken(data_dir):
    rows = testing.tiny_records(30, seed=11)
    write(data_dir, "unlabelled", [row | {"label": -1} for row in rows])
    write(data_dir, "unlabelled", rows[:10], "validation")
    write(data_dir, "unlabelled", rows[10:], "train")
    assert len(resolved_of(data_dir, "unlabelled").roles["weak"].splits["test:unlabelled"]) == 10
    write(data_dir, "training", rows, "train")
    assert len(resolved_of(data_dir, "training").roles["weak"].splits["test:training"]) == 30


def test_names_of_classes_decide_not_their_order(tmp_path):
    """A folder with some of the classes, which alone would be numbered otherwise."""
    names = ("bad", "good", "mixed")
    testing.write_tiny_task(tmp_path, labels=names, train=240)
    write(tmp_path, "some", testing.tiny_records(20, seed=3, labels=("mixed", "bad")))
    found = resolved_of(tmp_path, "some", losses=("xent",))
    labels = set(found.roles["weak"].splits["test:some"].truth_N.tolist())
    assert labels == {0.0, 2.0}


def test_choose_test_takes_equally_many_and_no_ties():
    documents = [Document(id=n, text=str(n), label=int(n < 7)) for n in range(10)]
    documents += [Document(id=10 + n, text=str(n), soft_label=0.5) for n in range(3)]
    chosen = choose_test(documents, None, balance=True)
    assert sorted(d.label for d in chosen) == [0, 0, 0, 1, 1, 1]
    assert len(choose_test(documents, 4, balance=True)) == 4
    assert {d.id for d in choose_test(documents, 100, balance=False)} == set(range(10))
    assert choose_test(documents[10:], None, balance=True) == []
    # The same documents, whatever their order.
    assert choose_test(documents[::-1], 4, balance=True, split_seed=1) == choose_test(
        documents, 4, balance=True, split_seed=1
    )


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("three",), "three: it has 3 classes (bad, good, odd), but task 'tiny' has 2 classes"),
        (("prompts",), "prompts: it is of kind 'generation', but task 'tiny' of kind 'classific"),
        (("pairs",), "pairs: it is of kind 'preference', but task 'tiny' of kind 'classification'"),
        (("digits_even",), "digits_even: its documents are tokens of a vocabulary of "),
        (("seen",), "seen: all 20 documents are also in slice1, slice2, validation of the run"),
        (("othr",), "othr: unknown value 'othr'"),
        (("tiny",), "'tiny' is the run's own task (task.name)"),
        (("other", "other"), "'other' is listed twice"),
        (("other,other",), "'other' is listed twice"),
    ],
)
def test_other_sets_are_refused(data_dir, sets, message):
    with pytest.raises(errors.InputError) as caught:
        resolved_of(data_dir, *sets)
    text = str(caught.value)
    assert text.startswith("task.test_tasks: ") and message in text and "\n" not in text


def test_a_set_of_one_class_is_refused(data_dir):
    with pytest.raises(errors.InputError, match=r"^task.test_tasks: one: .*label 1"):
        resolved_of(data_dir, "one")


def test_names_that_mean_something_else_are_refused(data_dir, monkeypatch):
    rows = {"test": [Document(id=n, text=f"text {n}", label=n % 2) for n in range(8)]}
    for name, classes in (("turned", ("good", "bad")), ("colours", ("red", "blue"))):
        monkeypatch.delitem(TASKS, name, raising=False)
        task = Task(name, "", "", load=lambda split_seed: rows, classes=classes)
        register_task(task)
    named = {"task__classes": ("bad", "good"), "task__name": "named_tiny"}
    testing.write_tiny_task(data_dir, "named_tiny", labels=("bad", "good"))
    with pytest.raises(errors.InputError, match="good, bad.*bad, good.*in another order"):
        resolved_of(data_dir, "turned", **named)
    with pytest.raises(errors.InputError, match="red, blue.*bad, good.*something else"):
        resolved_of(data_dir, "colours", **named)
    # Where the run's own classes have no names, their number is all that is known.
    assert (
        "test:colours: only the classes of colours have names (0 = red, 1 = blue); tiny is taken "
        "to mean the same"
    ) in resolved_of(data_dir, "colours").notes
    for name in ("turned", "colours"):
        del TASKS[name]


def test_a_builtin_task_of_the_same_tokens_is_allowed(tmp_path):
    from w2s_jax.config import default_config

    task = Task("odd_digits", "", "", load=_digits, token_space=TASKS["digits_even"].token_space)
    register_task(task)
    try:
        config = default_config()
        config.task.test_tasks = ("odd_digits",)
        config.task.train_docs = 200
        found = resolve(validation.validate(config))
    finally:
        del TASKS["odd_digits"]
    own = {d.tokens for split in load_task("digits_even").values() for d in split}
    assert len(own) and len(found.roles["weak"].splits["test:odd_digits"]) > 0


def _digits(split_seed):
    documents = load_task("digits_even", split_seed=split_seed)["test"][:50]
    return {
        "test": [Document(id=d.id + 1, tokens=d.tokens[::-1], label=d.label) for d in documents]
    }


# --- phases --------------------------------------------------------------------------------------


def test_names_of_splits_are_those_of_files():
    assert split_name("imdb") == "test:imdb"
    odd = [split_name(name) for name in ("a/b", "a_b", "a.b", "é*")]
    assert len(set(odd)) == 4 and not any("/" in name or "*" in name for name in odd)


@pytest.mark.parametrize("adapt", ["full", "lora", "probe", "probe_then_full"])
def test_other_phases_are_the_same_with_and_without(data_dir, adapt):
    changes = {
        "strong__train__adapt": adapt,
        "probe__batch_size": 16,
        "method__name": "bootstrapping,prompting",
    }
    without = plan(resolved_of(data_dir, **changes))
    with_sets = plan(resolved_of(data_dir, "other", "named", **changes))
    names = [phase.name for phase in without.phases]
    assert [phase.name for phase in with_sets.phases][: len(names)] == names
    assert with_sets.students == without.students and not without.transfer
    more = with_sets.phases[len(names) :]
    assert {phase.kind for phase in more} <= {"transfer", "features"}
    assert not {p for phase in without.phases for p in phase.parents.values()} & {
        phase.name for phase in more
    }
    # Weak, ceiling, two losses naive and bootstrapped, and the models in between.
    for task in ("other", "named"):
        assert len(with_sets.transfer[task]) == 8
        assert not any(with_sets.phase(n).kind == "labels" for n in with_sets.transfer[task])


def test_a_phase_is_named_by_model_documents_and_labels_alone(data_dir):
    write(data_dir, "renamed", testing.tiny_records(60, seed=5))
    first = plan(resolved_of(data_dir, "other"))
    again = plan(resolved_of(data_dir, "renamed"))
    fewer = plan(resolved_of(data_dir, "other", task__test_docs=10))
    (one,), (other,), (small,) = (
        {p.transfer[task][p.weak] for task in p.transfer} for p in (first, again, fewer)
    )
    assert one != other  # ids are those of the task, and predictions are stored by them
    assert one != small
    changed = testing.tiny_records(60, seed=5)
    changed[0]["label"] = 1 - changed[0]["label"]
    changed[1]["label"] = 1 - changed[1]["label"]
    write(data_dir, "other", changed)
    relabelled = plan(resolved_of(data_dir, "other"))
    assert relabelled.transfer["other"][relabelled.weak] != one
    write(data_dir, "other", testing.tiny_records(60, seed=5))


def test_estimates_of_a_transfer_phase(data_dir):
    found = resolved_of(data_dir, "other")
    planned = plan(found)
    phase = planned.phase(planned.transfer["other"][planned.ceiling])
    flops = costs.phase_flops(phase, found)
    trained = planned.phase(planned.ceiling)
    forward = costs.forward_flops(phase, found)
    assert flops.training == 0 and flops.inference == sum(forward.values()) > 0
    assert set(forward) == {"test:other"}
    assert memory_estimate(phase, found)["total"] == 4 * trained.model.num_parameters()
    assert phase.starts == {planned.ceiling, trained.parents["init"]}


def test_a_sweep_keeps_and_orders_what_its_sets_need(data_dir, tmp_path):
    from w2s_jax.sweep.planning import plan_sweep
    from w2s_jax.sweep.points import NamedPoint
    from w2s_jax.sweep.units import make_units

    points = [
        NamedPoint(f"seed{seed}-{len(sets)}", {}, config_of(data_dir, *sets, seed=seed))
        for seed in (0, 1)
        for sets in ((), ("other",))
    ]
    for point in points:
        point.config.mesh.population = 2
    found = plan_sweep(points, tmp_path / "sweep", tmp_path / "store")
    evaluated = {p.parents["model"] for p in found.phases.values() if p.kind == "transfer"}
    kinds = [name.partition("-")[0] for name in evaluated]
    assert sorted(kinds) == ["ceiling"] * 2 + ["student"] * 4 + ["weak"] * 2
    assert evaluated <= found.starts
    units = make_units(found, list(found.phases))
    unit_of = {name: n for n, unit in enumerate(units) for name in unit.phases}
    for name, phase in found.phases.items():
        if phase.kind == "transfer":
            assert units[unit_of[name]].phases == (name,)
            assert unit_of[phase.parents["model"]] in units[unit_of[name]].after
