"""Whole runs of a task that asks for completions: what is stored, learnt and reported."""

import itertools
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import w2s_jax
from w2s_jax import sharding
from w2s_jax.config import METHODS, default_config, validation
from w2s_jax.core import errors
from w2s_jax.execution import labels as exported
from w2s_jax.models import loading
from w2s_jax.models.generation import Generator
from w2s_jax.phases import completed, completions
from w2s_jax.phases.context import Context
from w2s_jax.phases.inputs import TrainingInputs
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts, token_labels
from w2s_jax.store.artifacts import PhaseFolder

pytestmark = pytest.mark.medium

LETTERS = "abcdefgh"
#: All methods for completions that share the slices of a naive run.
TOGETHER = [
    name for name, spec in METHODS.items() if "generation" in spec.kinds and name != "bootstrapping"
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with a task: the second of three letters, once or twice, as the first one says."""
    folder = tmp_path_factory.mktemp("data")
    texts = ["".join(letters) for letters in itertools.product(LETTERS, repeat=3)]
    random.Random(0).shuffle(texts)
    rows = [
        {"prompt": text, "target": text[1] * (1 + LETTERS.index(text[0]) % 2)} for text in texts
    ]
    (folder / "letters").mkdir()
    for split, part in (("train", rows[:384]), ("validation", rows[384:400]), ("test", rows[400:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / "letters" / f"{split}.jsonl").write_text(lines)
    return folder


def config_of(data_dir, *methods, **changes):
    config = default_config()
    config.task.name, config.task.data_dir = "letters", str(data_dir)
    config.weak.model, config.strong.model = "gpt-d8", "gpt-d16"
    config.train.batch_size, config.train.learning_rate = 16, 1e-2
    config.train.epochs = 6.0
    config.losses = ("xent",)
    config.mesh.data = 1
    config.method.name = ",".join(methods) or "naive"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


class Run:
    """A finished run, and what its phases have left."""

    def __init__(self, config, workdir):
        self.result = w2s_jax.run(config, workdir)
        self.workdir = workdir
        self.resolved = resolve(validation.validate(config))
        self.plan = plan(self.resolved)
        self.context = Context(
            self.resolved, workdir / "phases", sharding.make_mesh(), Console(quiet=True), bool
        )

    def folder(self, name):
        return PhaseFolder(self.workdir / "phases" / name)

    def student(self, key):
        return self.plan.phase(self.plan.students[key].phase)

    def inputs(self, phase):
        return TrainingInputs(phase, self.context)


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run with all losses and methods for completions, but bootstrapping."""
    config = config_of(
        data_dir,
        *TOGETHER,
        losses=("xent", "confidence", "kl", "dpo"),
        task__label_top_k=3,
        method__losses=("kl", "dpo"),
        method__bagging__members=2,
        method__strong_to_strong__iterations=1,
        method__preference_pairs__samples=4,
        method__preference_pairs__temperature=2.0,
        method__preference_pairs__confidence=0.5,
        method__preference_pairs__reversal=0.5,
    )
    return Run(config, tmp_path_factory.mktemp("run") / "run")


def predictions(run, phase):
    return pq.read_table(run.folder(phase).predictions).to_pylist()


def test_every_loss_and_method_has_its_students(run):
    students = set(run.result["students"])
    assert students >= {
        "xent", "confidence", "kl", "kl+strong_to_strong", "kl+generative",
        "kl+bagging", "kl+confidence_threshold", "kl+last_step", "kl+oracle_stop",
        "kl+answer_agreement", "dpo+preference_pairs",
    }  # fmt: skip
    assert "dpo" not in students
    json.dumps(run.result, allow_nan=False)


def test_results_are_what_the_stored_predictions_say(run, data_dir):
    rows = [
        json.loads(line) for line in (data_dir / "letters" / "test.jsonl").read_text().splitlines()
    ]
    targets = sorted(row["target"] for row in rows)
    supervisor = [row for row in predictions(run, run.plan.weak) if row["split"] == "test"]
    for key, entry in [("weak", run.result["weak"]), *run.result["students"].items()]:
        found = [row for row in predictions(run, entry["phase"]) if row["split"] == "test"]
        assert sorted(row["target"] for row in found) == targets, key
        right = [row["text"].strip() == row["target"] for row in found]
        assert [row["correct"] for row in found] == right, key
        assert entry["accuracy"] == np.mean(right) and entry["n"] == len(rows), key
        assert entry["auroc"] is None and entry["ece"] is None
        if key == "weak" or entry.get("supervisor"):
            continue
        same = [a["answer"] == b["answer"] != "" for a, b in zip(found, supervisor, strict=True)]
        assert entry["agreement"] == np.mean(same), key
        wrong = [s for s, row in zip(same, supervisor, strict=True) if not row["correct"]]
        assert entry["agreement_when_wrong"] == np.mean(wrong), key
        gap = run.result["ceiling"]["accuracy"] - run.result["weak"]["accuracy"]
        if "ceiling" not in entry:
            recovered = entry["accuracy"] - run.result["weak"]["accuracy"]
            assert entry["pgr"] == pytest.approx(recovered / gap), key


def test_the_ceiling_learns_the_task_and_the_weak_model_less(run):
    # 64 possible answers: chance is below .02.
    assert run.result["ceiling"]["accuracy"] > run.result["weak"]["accuracy"] > 0.02


def test_a_student_learns_the_texts_of_its_supervisor(run):
    """Prompts and labels, joined by hand from the files, give the tokens of the training batch."""
    phase = run.student("xent")
    labels = pq.read_table(run.folder(run.plan.weak).labels / "texts.parquet").to_pylist()
    text_of = {row["id"]: row["text"] for row in labels if row["split"] == "slice2"}
    documents = run.inputs(phase).documents
    prompts = {d.id: d.text for d in run.resolved.documents["slice2"]}
    stored = token_labels.stored(run.folder(run.plan.weak), "slice2")
    most = stored.tokens_NT.shape[1]
    length_of = dict(zip(stored.ids_N.tolist(), stored.lengths_N.tolist(), strict=True))
    for n, id_ in enumerate(documents.ids_N.tolist()):
        prompt, label = prompts[id_].encode(), text_of[id_].encode()
        end = [2] if length_of[id_] < most else []
        by_hand = [1, *(3 + b for b in prompt), *(3 + b for b in label), *end]
        assert documents.document(n).tolist() == by_hand[: len(documents.document(n))]
        start = documents.offsets[n]
        weights = documents.loss_weights_T[start : documents.offsets[n + 1]]
        assert weights.tolist() == [0.0] * (1 + len(prompt)) + [1.0] * (
            len(weights) - 1 - len(prompt)
        )


def test_labels_have_the_supervisors_most_probable_tokens(run):
    stored = token_labels.stored(run.folder(run.plan.weak), "slice2")
    assert stored.top_ids_NTk.shape == (*stored.tokens_NT.shape, 3)
    for n, length in enumerate(stored.lengths_N.tolist()):
        # Greedy: each token is the most probable one, with that log-probability.
        assert stored.tokens_NT[n, :length].tolist() == stored.top_ids_NTk[n, :length, 0].tolist()
        np.testing.assert_allclose(
            stored.logprobs_NT1[n, :length], stored.top_logprobs_NTk[n, :length, 0], atol=1e-5
        )
        assert not stored.logprobs_NT1[n, length + 1 :].any()


def test_methods_take_the_labels_that_they_should(run):
    weak = token_labels.stored(run.folder(run.plan.weak), "slice2")
    text_of = dict(zip(weak.ids_N.tolist(), weak.texts, strict=True))
    made = {p.label: p for p in run.plan.phases if p.kind == "labels"}
    kept = token_labels.stored(run.folder(made["confident"].name), "slice2")
    order = np.argsort(-weak.total_logprobs_N, kind="stable")[: len(weak.ids_N) // 2]
    assert set(kept.ids_N.tolist()) == set(weak.ids_N[order].tolist())
    # Agreeing: exactly the documents with the student's answer, repeated to the slice's size.
    parent = made["agreeing"].parents["strong"]
    strong = token_labels.stored(run.folder(parent), "slice2")
    same = {
        id_
        for id_, text in zip(strong.ids_N.tolist(), strong.texts, strict=True)
        if text.strip() == text_of[id_].strip() != ""
    }
    agreeing = token_labels.stored(run.folder(made["agreeing"].name), "slice2")
    assert set(agreeing.ids_N.tolist()) == same and len(agreeing.ids_N) == len(weak.ids_N)
    pairs = token_labels.load_pairs(run.folder(made["pairs"].name), "slice2")
    assert len(pairs.ids_N) == len(weak.ids_N) and (pairs.preference_N == 1).all()
    for id_, first, second in zip(pairs.ids_N.tolist(), pairs.first, pairs.second, strict=True):
        assert text_of[id_] in (first, second) and first.strip() != second.strip()


def test_preferences_start_from_the_student_whose_log_probabilities_are_the_reference(run):
    """At the first step the model is its own reference, so the loss of `dpo` is log 2."""
    rows = [
        json.loads(line)
        for line in run.folder(run.student("dpo+preference_pairs").name).metrics.open()
    ]
    first = next(row for row in rows if row.get("split") == "train")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_exported_labels_supervise_another_run_with_the_same_result(run, data_dir, tmp_path):
    """Labels written to a file, and read again in place of the weak model: the same student."""
    exported.export(run.folder(run.plan.weak).path, tmp_path / "labels.jsonl")
    config = config_of(data_dir, weak__labels=str(tmp_path / "labels.jsonl"))
    again = Run(config, tmp_path / "run")
    for name in ("accuracy", "agreement"):
        own, other = run.result["students"]["xent"], again.result["students"]["xent"]
        # Labels from a file all have an end; those that were cut off have none.
        assert own[name] == pytest.approx(other[name], abs=0.2)
    texts = token_labels.stored(again.folder(again.plan.weak), "test").texts
    assert list(texts) == list(token_labels.stored(run.folder(run.plan.weak), "test").texts)
    (tmp_path / "few.jsonl").write_text(
        "".join((tmp_path / "labels.jsonl").read_text().splitlines(keepends=True)[:-1])
    )
    config.weak.labels = str(tmp_path / "few.jsonl")
    with pytest.raises(errors.InputError, match="weak.labels"):
        w2s_jax.run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_bootstrapping_labels_slices_of_their_own(data_dir, tmp_path):
    config = config_of(data_dir, "bootstrapping", method__bootstrapping__models=("gpt-d16",))
    config.train.steps = 4
    result = w2s_jax.run(config, tmp_path / "run")
    assert "xent+bootstrapping" in result["students"]


def test_a_label_pass_that_was_killed_continues_after_its_finished_batches(
    run, data_dir, monkeypatch
):
    """Finished batches are not computed again, and the labels are those of an unbroken pass."""
    phase = run.plan.phase(run.plan.weak)
    monkeypatch.setattr("w2s_jax.models.generation_plan.CPU_BATCH_SIZE", 4)
    keep = run.workdir / "completions"
    _, backbone = loading.load(run.folder(phase.name).path)
    started, computed = [], Generator._start

    def counted(self, *args):
        started.append(1)
        return computed(self, *args)

    monkeypatch.setattr(Generator, "_start", counted)
    whole = completions.complete(phase, run.context, {"backbone": backbone}, "slice2")
    batches = len(started)
    assert batches > 4

    class Killed(Exception):
        pass

    finished = []

    def killed(self, number, arrays):
        kept(self, number, arrays)
        finished.append(number)
        if len(finished) == 3:
            raise Killed

    kept = completions.KeptBatches.keep
    monkeypatch.setattr(completions.KeptBatches, "keep", killed)
    with pytest.raises(Killed):
        completions.complete(phase, run.context, {"backbone": backbone}, "slice2", keep=keep)
    monkeypatch.setattr(completions.KeptBatches, "keep", kept)
    started.clear()
    again = completions.complete(phase, run.context, {"backbone": backbone}, "slice2", keep=keep)
    assert len(started) == batches - 3
    assert again.texts == whole.texts
    np.testing.assert_array_equal(again.logprobs_NT1, whole.logprobs_NT1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"losses": ("xent", "cace")}, "loss.cace.kind"),
        ({"losses": ("kl",)}, "task.label_top_k"),
        ({"losses": ("reverse_kl",), "task__label_top_k": 1}, "task.label_top_k"),
        ({"losses": ("kl",), "task__label_top_k": 300}, "task.label_top_k"),
        ({"losses": ("dpo",)}, "losses"),
        ({"method__name": "saliency"}, "method.name"),
        ({"method__name": "preference_pairs"}, "method.name"),
        ({"strong__train__adapt": "probe"}, "strong.train.adapt"),
        ({"train__label_smoothing": 0.1}, "weak.train.label_smoothing"),
        ({"task__max_length": 4}, "task.max_length"),
    ],
)
def test_what_completions_do_not_allow_is_refused_on_one_line(data_dir, tmp_path, changes, field):
    config = config_of(data_dir, **changes)
    with pytest.raises(errors.InputError) as caught:
        w2s_jax.run(config, tmp_path / "run")
    message = str(caught.value)
    assert field in message, message
    assert "\n" not in message and not (tmp_path / "run").exists()


def test_pairs_of_pairs_are_read_as_they_are_written(run):
    """Both texts of a pair are the prompt with one of the completions."""
    phase = run.student("dpo+preference_pairs")
    documents, preference_N = completed.paired_documents(
        phase, run.context, "slice2", run.resolved.roles["strong"].splits["slice2"]
    )
    assert documents.num_texts == 2 and len(preference_N) == len(documents)
    pairs = token_labels.load_pairs(run.folder(phase.parents["labels"]), "slice2")
    lengths_N2 = documents.prompt_lengths_P.reshape(-1, 2)
    assert (lengths_N2[:, 0] == lengths_N2[:, 1]).all()
    for n in range(len(documents)):
        first, second = documents.document(n), documents.document(n, 1)
        prompt = lengths_N2[n, 0]
        assert first[:prompt].tolist() == second[:prompt].tolist()
        assert first[prompt:].tolist() != second[prompt:].tolist()
        for text, whole, ended in zip(
            (first, second), (pairs.first[n], pairs.second[n]), pairs.ended_N2[n], strict=True
        ):
            # Bytes that are no text are read as three, which may not fit.
            if "\ufffd" not in whole:
                assert (text[-1] == 2) == ended
    assert (
        artifacts.labelled_ids(run.folder(phase.parents["labels"]), "slice2").tolist()
        == documents.ids_N.tolist()
    )
