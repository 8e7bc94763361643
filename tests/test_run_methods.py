"""Whole runs with methods on the tiny task: what each adds, from what, and what stays as it was."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import w2s_jax
from w2s_jax import sharding, testing
from w2s_jax.config import METHODS, recipes, validation
from w2s_jax.core import errors
from w2s_jax.data.tokenize import hard_labels
from w2s_jax.execution import execute
from w2s_jax.models import loading
from w2s_jax.phases import inputs
from w2s_jax.phases.context import Context
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.prediction import Predictor, probabilities

RECIPES = sorted((Path(__file__).parents[1] / "configs" / "methods").glob("*.py"))
#: Of supervisors that are made from others, and of students without labels or finetuning. Each
#: method runs on the tiny task, too.
RUN = [path for path in RECIPES if path.stem in ("ensembles", "prompting")]
#: All that share the slices of a naive run.
TOGETHER = [
    kind
    for kind, spec in METHODS.items()
    if kind != "bootstrapping" and "classification" in spec.kinds
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def config_of(data_dir, *kinds, **changes):
    config = testing.tiny_config(data_dir)
    config.losses = ("xent",)
    config.method.name = ",".join(kinds) or "naive"
    config.method.bagging.members = config.method.boosting.members = 2
    config.method.contrast_consistent_search.update(tries=2, iterations=20)
    config.method.prompting.shots = 1
    config.method.probe_filter.neighbours = config.method.probe_relabel.neighbours = 5
    config.probe.steps = 20
    config.probe.batch_size = 16
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


class Run:
    """A finished run, and what its phases have left."""

    def __init__(self, config, workdir, result):
        self.result, self.workdir = result, workdir
        self.resolved = resolve(validation.validate(config))
        self.plan = plan(self.resolved)
        self.context = Context(
            self.resolved, workdir / "phases", sharding.make_mesh(), Console(quiet=True), bool
        )

    def folder(self, name):
        return PhaseFolder(self.workdir / "phases" / name)

    def documents(self, split):
        return self.resolved.roles["strong"].splits[split]

    def labels(self, name, split):
        return artifacts.load_labels(self.folder(name), split, self.documents(split).ids_N)

    def student(self, key):
        return self.plan.phase(self.plan.students[key].phase)

    def made(self, label):
        return next(p for p in self.plan.phases if p.kind == "labels" and p.label == label)


def written(workdir):
    """Phase -> when its result was written."""
    results = (workdir / "phases").glob("*/result.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in results}


@pytest.fixture(scope="module")
def everything(data_dir, tmp_path_factory):
    """A naive run, to which all methods that it allows were then added."""
    workdir = tmp_path_factory.mktemp("methods") / "run"
    naive = w2s_jax.run(config_of(data_dir), workdir)
    before = written(workdir)
    config = config_of(data_dir, *TOGETHER)
    result = w2s_jax.run(config, workdir)
    assert result["students"]["xent"] == naive["students"]["xent"]
    assert before.items() <= written(workdir).items()
    return Run(config, workdir, result)


@pytest.mark.slow
def test_every_method_has_its_students_and_the_result_is_strict_json(everything):
    text = (everything.workdir / "result.json").read_text()
    students = json.loads(text, parse_constant=lambda name: pytest.fail(name))["students"]
    assert {student["method"] for student in students.values()} >= {
        "naive", "strong_to_strong", "generative", "bagging", "boosting", "confidence_threshold",
        "probe_filter", "probe_relabel", "trust_filter", "last_step", "oracle_stop", "lp_truth",
        "lp_weak", "ft_weak_lp_truth", "prompting_zero_shot", "prompting_few_shot_truth",
        "prompting_few_shot_weak", "contrast_consistent_search", "em_posterior", "lora",
        "weight_decay", "dropout", "label_smoothing", "ema", "imitation",
        *(f"synthetic_{structure}" for structure in METHODS["synthetic"].defaults["structures"]),
    }  # fmt: skip
    for key, student in students.items():
        assert student["n"] == 64, key
        assert (everything.workdir / "phases" / student["phase"] / "predictions.parquet").exists()


def test_methods_add_phases_and_change_none(data_dir):
    naive = plan(resolve(validation.validate(config_of(data_dir))))
    for kind in TOGETHER:
        resolved = resolve(validation.validate(config_of(data_dir, kind)))
        made = plan(resolved)
        assert {p.name for p in naive.phases} < {p.name for p in made.phases}, kind
        names = [p.name for p in made.phases]
        assert len(set(names)) == len(names)
        for n, phase in enumerate(made.phases):
            assert set(phase.parents.values()) <= set(names[:n]), (kind, phase.title)
            assert memory_estimate(phase, resolved)["total"] > 0


@pytest.mark.slow
def test_an_earlier_method_stays_when_another_is_added(everything, data_dir, tmp_path):
    def run(config):
        store = everything.workdir / "phases"
        return execute.run(config, tmp_path / "run", store=store, console=Console(quiet=True))

    first = run(config_of(data_dir, "confidence_threshold"))
    both = run(config_of(data_dir, "em_posterior"))
    key = "xent+confidence_threshold"
    assert both["students"][key] == first["students"][key]
    assert "xent+em_posterior" in both["students"]
    other = config_of(data_dir, "em_posterior", method__confidence_threshold__share=0.25)
    with pytest.raises(errors.InputError, match=r"method\.confidence_threshold\.share"):
        run(other)


@pytest.mark.slow
def test_a_filtered_student_trains_on_the_kept_documents_alone(everything):
    weak_NC = everything.labels(everything.plan.weak, "slice2")
    documents = everything.documents("slice2")
    confidence_N = np.abs(weak_NC[:, 1] - 0.5)
    phase = everything.student("xent+confidence_threshold")
    chosen = inputs.TrainingInputs(phase, everything.context).documents
    assert len(chosen) == phase.subset == len(documents) // 2
    kept_N = np.isin(documents.ids_N, chosen.ids_N)
    for side in (True, False):
        of_class_N = (weak_NC[:, 1] > 0.5) == side
        if (of_class_N & kept_N).any() and (of_class_N & ~kept_N).any():
            least = confidence_N[of_class_N & kept_N].min()
            assert least >= confidence_N[of_class_N & ~kept_N].max() - 1e-6
    targets_NC = inputs.TrainingInputs(phase, everything.context).targets_NC
    np.testing.assert_array_equal(targets_NC, weak_NC[kept_N])
    phase = everything.student("xent+probe_filter")
    dropped = inputs.TrainingInputs(phase, everything.context).documents
    assert len(dropped) == len(documents) - round(0.1 * len(documents))


@pytest.mark.slow
def test_resampled_documents_occur_as_often_as_they_were_drawn(everything):
    members = [p for p in everything.plan.phases if p.label.startswith("member ")]
    assert len(members) == 2 and len({p.seed for p in members}) == 2
    drawn = [inputs.TrainingInputs(p, everything.context).documents for p in members]
    slice1 = everything.documents("slice1")
    for documents in drawn:
        assert len(documents) == len(slice1)
        ids, counts_N = np.unique(documents.ids_N, return_counts=True)
        assert set(ids.tolist()) < set(slice1.ids_N.tolist()) and counts_N.max() > 1
    assert sorted(drawn[0].ids_N.tolist()) != sorted(drawn[1].ids_N.tolist())
    phase = members[0]
    targets_NC = inputs.TrainingInputs(phase, everything.context).targets_NC
    np.testing.assert_array_equal(targets_NC[:, 1], drawn[0].labels_N)


@pytest.mark.slow
def test_a_bagged_supervisor_is_the_mean_of_its_members_logits(everything):
    supervisor = everything.plan.students["xent+bagging"].supervisor
    members = everything.plan.phase(supervisor).parents.values()
    p = [everything.labels(name, "test")[:, 1].astype(np.float64) for name in members]
    logits_N = np.mean([np.log(x / (1 - x)) for x in p], axis=0)
    ours_N = everything.labels(supervisor, "test")[:, 1]
    np.testing.assert_allclose(ours_N, 1 / (1 + np.exp(-logits_N)), atol=1e-5)
    table = pq.read_table(everything.folder(supervisor).predictions).to_pandas()
    shown_N = table[table["split"] == "test"]["p"].to_numpy()
    np.testing.assert_allclose(shown_N, ours_N, atol=1e-6)


@pytest.mark.slow
def test_boosting_draws_the_errors_of_the_first_member_more_often(everything):
    first = next(p for p in everything.plan.phases if p.label == "boosted 1")
    wrong_N = (everything.labels(first.name, "slice1")[:, 1] > 0.5) != (
        everything.documents("slice1").labels_N > 0.5
    )
    drawn = artifacts.labelled_ids(everything.folder(everything.made("sample 2").name), "slice1")
    boosted = [p for p in everything.plan.phases if p.label == "sample 2" and p.parents]
    assert len(boosted) == 1
    drawn = artifacts.labelled_ids(everything.folder(boosted[0].name), "slice1")
    errors_N = np.isin(drawn, everything.documents("slice1").ids_N[wrong_N])
    # AdaBoost gives the errors half of the weight.
    assert 0 < wrong_N.mean() < 0.5 and abs(errors_N.mean() - 0.5) < 0.25
    assert errors_N.mean() > wrong_N.mean()


@pytest.mark.slow
def test_synthetic_supervisors_err_as_often_as_the_weak_model(everything):
    weak_NC = everything.labels(everything.plan.weak, "slice2")
    truth_N = hard_labels(everything.documents("slice2").labels_N)
    wrong = np.sum((weak_NC[:, 1] > 0.5) != (truth_N > 0.5))
    kinds = {}
    for structure in METHODS["synthetic"].defaults["structures"]:
        labels_NC = everything.labels(everything.made(f"errors {structure}").name, "slice2")
        errors_N = (labels_NC[:, 1] > 0.5) != (truth_N > 0.5)
        assert errors_N.sum() == wrong
        kinds[structure] = errors_N
    lengths_N = everything.documents("slice2").lengths_N
    assert lengths_N[kinds["longest"]].min() >= lengths_N[~kinds["longest"]].max()
    assert lengths_N[kinds["shortest"]].max() <= lengths_N[~kinds["shortest"]].min()
    np.testing.assert_array_equal(kinds["weak"], (weak_NC[:, 1] > 0.5) != (truth_N > 0.5))


@pytest.mark.slow
def test_an_imitating_student_finds_the_weak_label_at_the_end_of_each_document(everything):
    phase = everything.student("xent+imitation")
    role = everything.resolved.roles["strong"]
    for split in ("slice2", "test"):
        weak_NC = everything.labels(everything.plan.weak, split)
        documents = inputs.split_documents(phase, everything.context, split)
        for i in range(3):
            said = role.label_tokens[int(weak_NC[i, 1] > 0.5)]
            assert documents.document(i)[-1 - len(role.suffix)] == said


@pytest.mark.slow
def test_an_oracle_keeps_the_evaluation_with_the_best_accuracy(everything):
    for key, by in (("xent+oracle_stop", "accuracy"), ("xent", "agreement")):
        phase = everything.student(key)
        folder = everything.folder(phase.name)
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        rows = [row for row in rows if row["split"] == "validation"]
        best = max(rows, key=lambda row: (row[by], -row["cross_entropy"], -row["step"]))
        assert json.loads(folder.result.read_text())["kept_step"] == best["step"]
    last = everything.student("xent+last_step")
    assert json.loads(everything.folder(last.name).result.read_text())["kept_step"] == 20


@pytest.mark.slow
def test_generative_finetuning_has_a_ceiling_of_its_own(everything):
    student = everything.plan.students["xent+generative"]
    phases = [everything.plan.phase(name) for name in (student.phase, student.ceiling)]
    inits = {phase.parents["init"] for phase in phases}
    assert len(inits) == 1 and student.ceiling != everything.plan.ceiling
    pretraining = everything.plan.phase(inits.pop())
    assert pretraining.kind == "pretrain" and pretraining.inputs == {"train": "slice2"}
    assert everything.plan.phase(pretraining.parents["init"]).kind == "pretrain"
    entry = everything.result["students"]["xent+generative"]
    gap = entry["ceiling"]["accuracy"] - everything.result["weak"]["accuracy"]
    gain = entry["accuracy"] - everything.result["weak"]["accuracy"]
    assert entry["pgr"] == (pytest.approx(gain / gap) if gap > 0 else None)


@pytest.mark.slow
def test_probes_of_a_finetuned_student_see_its_own_activations(everything):
    probe = everything.student("xent+ft_weak_lp_truth")
    features = everything.plan.phase(probe.parents["features"])
    student = everything.student("xent")
    assert features.parents == {"init": student.name}
    mesh = everything.context.mesh
    _, params = loading.load(everything.folder(student.name).path, mesh)
    documents = everything.documents("test")
    run = Predictor(student.model, documents, mesh, per_device=False, features=True)
    stored_NKD = artifacts.load_features(everything.folder(features.name), "test", documents.ids_N)
    np.testing.assert_allclose(stored_NKD, run({"backbone": params}), atol=1e-4)


@pytest.mark.slow
def test_zero_shot_is_the_language_model_between_its_label_tokens(everything):
    phase = everything.student("prompting_zero_shot")
    role, mesh = everything.resolved.roles["strong"], everything.context.mesh
    _, params = loading.load(everything.folder(phase.parents["init"]).path, mesh)
    documents = everything.documents("test")
    tokens_L = documents.document(0)
    tokens_L = tokens_L[: len(tokens_L) - len(role.suffix)]
    hidden_RLD = w2s_jax.models.forward(phase.model, params, tokens_L[None])
    kernel = np.asarray(params["embedding"])[np.asarray(role.label_tokens)].T
    p_C = probabilities(np.asarray(hidden_RLD)[0, -1:] @ kernel)
    ours_N = everything.labels(phase.name, "test")
    np.testing.assert_allclose(ours_N[0], p_C[0], atol=1e-4)


@pytest.mark.slow
def test_bootstrapping_gives_each_model_a_fresh_slice(data_dir, tmp_path):
    config = config_of(data_dir, "bootstrapping", method__bootstrapping__models=("gpt-d8",))
    run = Run(config, tmp_path / "run", w2s_jax.run(config, tmp_path / "run"))
    last = run.student("xent+bootstrapping")
    middle = run.plan.phase(last.parents["labels"])
    assert (middle.role, middle.model.name, middle.inputs["train"]) == (
        "middle1", "gpt-d8", "slice2",
    )  # fmt: skip
    assert middle.parents["labels"] == run.plan.weak
    assert last.inputs["train"] == "slice3" and last.model.name == "gpt-d16"
    ids = [set(run.documents(f"slice{n}").ids_N.tolist()) for n in (1, 2, 3)]
    assert not ids[0] & ids[1] and not ids[1] & ids[2] and not ids[0] & ids[2]


def outside_rows(data_dir):
    """(ids, ground truth) of all that a supervisor labels."""
    splits = resolve(validation.validate(config_of(data_dir))).roles["weak"].splits
    parts = [splits[name] for name in ("slice2", "validation", "test")]
    return [
        (int(i), float(label))
        for part in parts
        for i, label in zip(part.ids_N, part.labels_N, strict=True)
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"id": str(i), "p": p}) + "\n" for i, p in rows))
    return str(path)


@pytest.mark.slow
def test_labels_from_a_file_take_the_place_of_the_weak_model(data_dir, tmp_path):
    rows = [(i, 0.9 if label else 0.2) for i, label in outside_rows(data_dir)]
    path = write_rows(tmp_path / "judge.jsonl", rows)
    result = w2s_jax.run(config_of(data_dir, weak__labels=path), tmp_path / "run")
    assert result["weak"]["accuracy"] == 1.0 and result["weak"]["model"] == "labels of judge.jsonl"
    assert [s["kind"] for s in result["stages"]].count("weak") == 0
    # Another file is another supervisor.
    write_rows(tmp_path / "judge.jsonl", [(i, 1 - p) for i, p in rows])
    with pytest.raises(errors.InputError, match="labels"):
        w2s_jax.run(config_of(data_dir, weak__labels=path), tmp_path / "run")


def test_a_file_without_a_label_for_each_document_is_refused(data_dir, tmp_path):
    path = write_rows(tmp_path / "judge.jsonl", outside_rows(data_dir)[1:])
    with pytest.raises(errors.InputError, match="no label for 1 of") as error:
        w2s_jax.run(config_of(data_dir, weak__labels=path), tmp_path / "run")
    assert "weak.labels" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"method__name": "boostrapping"}, "did you mean 'bootstrapping'"),
        ({"method__name": "early_stopping", "method__early_stopping__by": ("oracle",)}, "oracle"),
        ({"method__name": "synthetic", "method__synthetic__structures": ()}, "is empty"),
        ({"method__confidence_threshold__share": 1.5}, "below 1"),
        ({"method__probe_filter__judge": "svm"}, "knn, logistic, topological"),
        ({"method__bagging__members": 1}, "at least 2"),
        (
            {"method__name": "confidence_threshold", "method__confidence_threshold__share": 0.1},
            r"strong\.train\.batch_size: 16 exceeds the 8 training documents of slice2",
        ),
        ({"method__name": "saliency", "probe__batch_size": 128}, r"strong\.probe\.batch_size"),
        (
            {"method__name": "generative", "pretrain__batch_size": 100},
            r"strong\.pretrain\.batch_size: 100 exceeds the 80 training documents",
        ),
        ({"method__name": "saliency", "strong__train__adapt": "lora"}, "finetuned in full"),
        (
            {
                "method__name": "trust_filter",
                "task__validation_docs": 0,
                "protocol__early_stopping": "none",
            },
            "a validation set",
        ),
        ({"method__name": "bootstrapping", "method__bootstrapping__models": ("gpt-x",)}, "gpt-x"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_anything_is_written(
    changes, message, data_dir, tmp_path
):
    with pytest.raises(errors.InputError, match=message):
        w2s_jax.run(config_of(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_a_method_can_be_planned(path):
    config = recipes.load_config(f"{path}:3", [])
    assert config.seed == 3 and config.name == f"{path.stem}-3"
    made = plan(resolve(validation.validate(config)))
    assert len(made.students) > len(config.losses) or path.stem == "losses"


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_recipe_of_methods_runs(path, tmp_path):
    few = ["strong.pretrain.steps=20", "weak.train.steps=20", "strong.train.steps=20"]
    few += ["task.train_docs=200", "probe.steps=10", "probe.batch_size=32"]
    config = recipes.load_config(f"{path}:3", [f"--config.{change}" for change in few])
    result = w2s_jax.run(config, tmp_path / "run")
    assert all(student["n"] == 400 for student in result["students"].values())
