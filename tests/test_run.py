"""Whole runs on the tiny task: the contract, resuming, adding losses, refusing, interrupting.

Processes that are killed or terminated are in test_interruptions.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import threading

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from interrupting import interrupted_run
from rich.console import Console
from sklearn.metrics import roc_auc_score

import w2s_jax
from w2s_jax import models, phases, resolve, testing, validation
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.core.files import sha256
from w2s_jax.data.external_labels import join_labels, read_external_labels
from w2s_jax.data.loading import load_task
from w2s_jax.data.records import read_records
from w2s_jax.execution import execute, printing
from w2s_jax.metrics import classification
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.report import write_report
from w2s_jax.report.runs import load_runs
from w2s_jax.report.settings import settings_of
from w2s_jax.store import artifacts, trees

QUIET = Console(quiet=True)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(data_dir, tmp_path_factory):
    """A finished run: its folder and its result. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = w2s_jax.run(testing.tiny_config(data_dir), workdir)
    return workdir, result


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run, free to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def phase_folders(workdir):
    return {p.name.split("-")[0]: p for p in sorted((workdir / "phases").iterdir())}


def comparable(result):
    """What must be equal bit for bit between a disturbed and an undisturbed run."""
    return {k: result[k] for k in ("weak", "ceiling", "students", "stages")}


@pytest.mark.medium
def test_the_result_fulfils_the_contract(finished):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert set(result) >= {
        "name", "task", "seed", "protocol", "weak", "ceiling", "students", "stages", "timing",
        "versions",
    }  # fmt: skip
    assert (result["task"], result["seed"], result["protocol"]) == ("tiny", 0, "paper")
    for role in (result["weak"], result["ceiling"], *result["students"].values()):
        assert role["n"] == 64 and 0 <= role["accuracy"] <= 1
    assert list(result["students"]) == ["xent", "confidence"]
    for student in result["students"].values():
        gap = result["ceiling"]["accuracy"] - result["weak"]["accuracy"]
        if gap > 0:
            gain = student["accuracy"] - result["weak"]["accuracy"]
            assert student["pgr"] == pytest.approx(gain / gap)
        else:
            assert student["pgr"] is None and student["pgr_note"]
        assert student["gap_low"] <= gap <= student["gap_high"]
    kinds = [stage["kind"] for stage in result["stages"]]
    assert kinds == ["pretrain", "pretrain", "weak", "ceiling", "student", "student"]
    for stage in result["stages"]:
        assert (workdir / "phases" / stage["phase"] / "result.json").exists()
    assert result["versions"]["w2s_jax"] == w2s_jax.__version__
    assert (workdir / "report" / "report.html").stat().st_size > 10_000


def test_all_metrics_follow_from_the_predictions(finished):
    workdir, result = finished
    tables = {}
    for stage in result["stages"]:
        if stage["kind"] != "pretrain":
            table = pq.read_table(workdir / "phases" / stage["phase"] / "predictions.parquet")
            tables[stage.get("label", stage["kind"])] = table.to_pandas()
    assert set(tables["weak"].split) == {"validation", "test"}
    tests = {name: table.query("split == 'test'") for name, table in tables.items()}
    weak = tests["weak"]
    roles = {"weak": result["weak"], "ceiling": result["ceiling"], **result["students"]}
    right = {n: ((t.p > 0.5) == (t.ground_truth > 0.5)).to_numpy() for n, t in tests.items()}
    for name, role in roles.items():
        test = tests[name]
        assert (test.id.to_numpy() == weak.id.to_numpy()).all()
        accuracy = right[name].mean()
        assert role["accuracy"] == accuracy
        assert role["accuracy_se"] == pytest.approx((accuracy * (1 - accuracy) / 64) ** 0.5)
        assert role["auroc"] == pytest.approx(roc_auc_score(test.ground_truth, test.p))
    for label, student in result["students"].items():
        test = tests[label]
        agree = (test.p > 0.5).to_numpy() == (weak.p > 0.5).to_numpy()
        assert student["agreement"] == pytest.approx(agree.mean())
        assert student["agreement_when_correct"] == pytest.approx(agree[right["weak"]].mean())
        assert student["agreement_when_wrong"] == pytest.approx(agree[~right["weak"]].mean())
        # A student's label column is the supervisor's soft label; the others' is the truth.
        np.testing.assert_array_equal(test.label, weak.p)
    np.testing.assert_array_equal(weak.label, weak.ground_truth)
    np.testing.assert_array_equal(tests["ceiling"].label, weak.ground_truth)


def test_weak_labels_are_joined_by_document_id(finished, data_dir):
    workdir, _ = finished
    folder = artifacts.PhaseFolder(phase_folders(workdir)["weak"])
    table = pq.read_table(folder.predictions).to_pandas().query("split == 'test'")
    ids, p = table.id.to_numpy(), table.p.to_numpy()
    order = np.random.default_rng(0).permutation(len(ids))
    soft = artifacts.load_labels(folder, "test", ids[order])
    np.testing.assert_array_equal(soft[:, 1], p[order])
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    documents = load_task("tiny", data_dir=str(data_dir))["test"]
    assert {d.id for d in documents} == {int(i) for i in ids}
    with pytest.raises(errors.InputError, match="2 of 66 documents.*are missing"):
        artifacts.load_labels(folder, "test", np.concatenate([ids, np.array([1, 2], np.uint64)]))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz", ".parquet"])
def test_weak_labels_in_a_file_are_accepted_as_external_ones(
    finished, data_dir, tmp_path, suffix, capsys
):
    workdir, _ = finished
    weak = phase_folders(workdir)["weak"]
    path = tmp_path / f"labels{suffix}"
    assert main(["labels", str(workdir), f"--to={path}"]) == 0
    assert f"{weak.name}: 80 slice2" in capsys.readouterr().out
    rows = [row for _, row in read_records(path)]
    assert set(rows[0]) == {"id", "split", "p"}
    whole = suffix == ".parquet"
    assert all(isinstance(row["id"], int) == whole for row in rows)
    assert whole or all(re.fullmatch("0x[0-9a-f]{16}", row["id"]) for row in rows)
    found, stored = read_external_labels(path), artifacts.stored_labels(artifacts.PhaseFolder(weak))
    assert list(stored) == ["slice2", "test", "validation"]
    for split, (ids_N, soft_NC) in stored.items():
        same = [row for row in rows if row["split"] == split]
        assert len(same) == len(ids_N)
        np.testing.assert_array_equal(join_labels(found, ids_N, "x")[:, 1], soft_NC[:, 1])
    config = testing.tiny_config(data_dir)
    config.weak.labels = str(path)
    assert resolve.resolve(validation.validate(config)).outside == sha256(path)


def test_which_labels_are_written(workdir, tmp_path, capsys):
    def refused(source, name="l.csv"):
        assert main(["labels", str(source), f"--to={tmp_path / name}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    folders = phase_folders(workdir)
    weak, to = folders["weak"], tmp_path / "l.csv"
    assert f"no labels; with labels here: {weak.name}" in refused(folders["ceiling"])
    assert "there is no folder" in refused(tmp_path / "none")
    assert "has no result.json" in refused(tmp_path)
    assert "unknown file type; allowed: .parquet, .csv" in refused(weak, "l.txt")
    assert "the folder" in refused(weak, "no/l.csv")
    assert not to.exists() and main(["labels", str(weak), f"--to={to}"]) == 0
    assert "exists" in refused(weak)
    to.unlink()
    # A second weak model, as in an ensemble: which one is meant?
    other = shutil.copytree(weak, weak.with_name("weak-0123456789abcdef"))
    result = json.loads((workdir / "result.json").read_text())
    result["stages"].append({"kind": "weak", "phase": other.name, "model": "m"})
    (workdir / "result.json").write_text(json.dumps(result))
    message = refused(workdir)
    assert "2 phases with labels" in message and str(weak) in message and str(other) in message


def test_a_finished_run_is_not_run_again(workdir, data_dir, monkeypatch, capsys):
    monkeypatch.setattr(phases, "run_phase", lambda *_: pytest.fail("trained again"))
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    config = testing.tiny_config(data_dir)
    config.log.every, config.checkpoint.keep, config.train.microbatch_size = 7, 5, 8
    result = w2s_jax.run(config, workdir)
    assert result == json.loads((workdir / "result.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before
    assert "ceiling" in capsys.readouterr().out


@pytest.mark.medium
@pytest.mark.usefixtures("no_report")
def test_more_losses_add_their_students_only(workdir, data_dir, finished, monkeypatch):
    ran = []
    original = phases.run_phase
    monkeypatch.setattr(
        phases, "run_phase", lambda phase, ctx: (ran.append(phase.title), original(phase, ctx))
    )
    config = testing.tiny_config(data_dir)
    config.losses = ("logconf",)
    result = w2s_jax.run(config, workdir)
    assert ran == ["student logconf"]
    assert list(result["students"]) == ["xent", "confidence", "logconf"]
    for label in ("xent", "confidence"):
        assert result["students"][label] == finished[1]["students"][label]
    assert execute.run(testing.tiny_config(data_dir), workdir, console=QUIET) == result


@pytest.mark.parametrize(
    "change,named",
    [
        ({"task.max_length": 30}, r"task.max_length \(None there, 30 now\)"),
        ({"weak.model": "gpt-d16"}, r"weak.model \('gpt-d8' there, 'gpt-d16' now\)"),
        ({"protocol.name": "released"}, "protocol.name"),
        ({"seed": 5}, r"seed \(0 there, 5 now\)"),
        ({"loss.confidence.alpha_max": 0.7}, "loss.confidence.alpha_max"),
    ],
)
def test_another_experiment_is_refused_and_nothing_changes(workdir, data_dir, change, named):
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    config = testing.tiny_config(data_dir)
    config.update_from_flattened_dict(change)
    with pytest.raises(errors.InputError, match=named):
        execute.run(config, workdir, console=QUIET)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_changed_data_are_refused(workdir, tmp_path):
    other = testing.write_tiny_task(tmp_path / "data", train=158)
    with pytest.raises(errors.InputError, match=r"documents of slice1 \(the data have changed\)"):
        execute.run(testing.tiny_config(other), workdir, console=QUIET)


def test_a_foreign_folder_is_refused(tmp_path, data_dir):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(errors.InputError, match="is not a run folder"):
        execute.run(testing.tiny_config(data_dir), tmp_path, console=QUIET)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(errors.InputError, match="config.json is not the config of a run"):
        execute.run(testing.tiny_config(data_dir), tmp_path, console=QUIET)


@pytest.mark.usefixtures("no_report")
def test_a_kill_in_the_very_first_write_leaves_a_folder_that_runs(tmp_path, data_dir, finished):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".config.json.4711.tmp").write_text("{")
    store = shutil.copytree(finished[0] / "phases", tmp_path / "store")
    result = execute.run(testing.tiny_config(data_dir), workdir, store=store, console=QUIET)
    assert comparable(result) == comparable(finished[1])


def test_what_a_kill_leaves_of_result_and_report_is_written_again(workdir, data_dir, finished):
    page, path = workdir / "report" / "report.html", workdir / "result.json"
    path.write_text("{")
    page.write_text("old")
    assert execute.run(testing.tiny_config(data_dir), workdir, console=QUIET) == finished[1]
    assert json.loads(path.read_text()) == finished[1]
    assert "confidence" in page.read_text()


def test_damaged_predictions_are_refused_by_name(workdir, data_dir, finished):
    path = workdir / "phases" / finished[1]["stages"][-1]["phase"] / "predictions.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        errors.StorageError, match=r"predictions.parquet: does not match.*command again"
    ):
        execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    (path.parent / "result.json").write_text("{}")
    with pytest.raises(errors.StorageError, match=r"result.json: damaged.*command again"):
        execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_runs_that_differ_in_seeds_are_one_group_of_a_report(workdir, data_dir, finished, tmp_path):
    config = testing.tiny_config(data_dir)
    config.seed = config.task.split_seed = 1
    other = execute.run(config, tmp_path / "seed1", store=workdir / "phases", console=QUIET)
    shared = {s["phase"] for s in finished[1]["stages"]} & {s["phase"] for s in other["stages"]}
    assert {name.split("-")[0] for name in shared} == {"pretrain"}
    runs, _ = load_runs([workdir, tmp_path / "seed1"])
    assert [len(setting.runs) for setting in settings_of(runs)] == [2]
    assert all(run.curves for run in runs), "training curves are found in the store too"
    page = write_report([workdir, tmp_path / "seed1"], tmp_path / "both").read_text()
    medians = [
        f"{(finished[1][role]['accuracy'] + other[role]['accuracy']) / 2:.3f}"
        for role in ("weak", "ceiling")
    ]
    assert all(median in page for median in medians)


def test_a_dry_run_prints_phases_and_writes_nothing(tmp_path, data_dir):
    console = Console(record=True, width=120)
    config = testing.tiny_config(data_dir)
    assert execute.run(config, tmp_path / "new", dry_run=True, console=console) == {}
    text = console.export_text()
    assert "6 of 6 phases to run" in text and text.count("GiB") == 6
    assert not (tmp_path / "new").exists()


def test_phases_beyond_the_memory_there_is_are_named(tmp_path, data_dir):
    prepared = execute.prepare_alike(testing.tiny_config(data_dir), tmp_path / "new", None)
    phases, console = prepared.plan.phases, Console(record=True, width=400)
    largest = max(memory_estimate(p, prepared.resolved)["total"] for p in phases)
    # Enough, not known, and enough on four devices that split the parameters.
    for limit, shape in ((largest, None), (None, None), (largest - 1, (1, 2, 2))):
        printing.warn_of_memory(phases, prepared.resolved, shape, limit, "an H200", console)
    assert not console.export_text()
    printing.warn_of_memory(phases, prepared.resolved, None, 2**14, "an H200", console)
    text = console.export_text()
    assert "warning: 6 phases need more memory (estimate) than the <0.01 GiB of an H200" in text
    assert "most of it for activations: lower train.microbatch_size" in text


def remove_phase(workdir, kind):
    shutil.rmtree(phase_folders(workdir)[kind])
    (workdir / "result.json").unlink()


@pytest.mark.medium
@pytest.mark.parametrize("questions", [2, 3])
@pytest.mark.usefixtures("no_report")
def test_an_interrupted_student_resumes_bit_for_bit(workdir, data_dir, finished, questions):
    """Stopped at step 10 or 15 of 20 (before and after an evaluation that is the best so far)."""
    confidence = finished[1]["stages"][-1]["phase"]
    undisturbed = (workdir / "phases" / confidence / "metrics.jsonl").read_text()
    predictions = (workdir / "phases" / confidence / "predictions.parquet").read_bytes()
    shutil.rmtree(workdir / "phases" / confidence)
    config = testing.tiny_config(data_dir)
    interrupted_run(config, workdir, questions)
    folder = workdir / "phases" / confidence
    assert not (folder / "result.json").exists()
    saved = [p.name for p in (folder / "checkpoints" / "steps").iterdir() if p.is_dir()]
    assert saved == [str(5 * questions)]
    result = execute.run(config, workdir, console=QUIET)
    assert comparable(result) == comparable(finished[1])
    assert (folder / "metrics.jsonl").read_text() == undisturbed
    assert (folder / "predictions.parquet").read_bytes() == predictions
    assert not (folder / "checkpoints" / "steps").exists()


@pytest.mark.medium
@pytest.mark.usefixtures("no_report")
def test_a_damaged_checkpoint_falls_back_to_the_one_before(workdir, data_dir, finished, caplog):
    name = finished[1]["stages"][-1]["phase"]
    folder = workdir / "phases" / name
    shutil.rmtree(folder)
    config = testing.tiny_config(data_dir)
    config.checkpoint.every_minutes = 0.0
    interrupted_run(config, workdir, 3)
    steps = folder / "checkpoints" / "steps"
    assert sorted(p.name for p in steps.iterdir() if p.is_dir()) == ["10", "15"]
    victim = max(
        (p for p in (steps / "15").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    result = execute.run(config, workdir, console=QUIET)
    assert "15 is damaged" in caplog.text and "using the previous one" in caplog.text
    assert comparable(result) == comparable(finished[1])


@pytest.mark.medium
@pytest.mark.usefixtures("no_report")
def test_damaged_final_parameters_are_made_again(workdir, data_dir, finished, caplog):
    folder = phase_folders(workdir)["ceiling"]
    (folder / "result.json").unlink()
    victim = next(p for p in (folder / "checkpoints" / "final").rglob("manifest.ocdbt"))
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    result = execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    assert "is damaged" in caplog.text
    assert comparable(result) == comparable(finished[1])


def test_damaged_pretrained_parameters_are_one_clear_error(workdir, data_dir, finished):
    shutil.rmtree(workdir / "phases" / finished[1]["stages"][-1]["phase"])
    folder = workdir / "phases" / finished[1]["stages"][1]["phase"]
    victim = next(p for p in (folder / "checkpoints" / "final").rglob("manifest.ocdbt"))
    victim.unlink()
    with pytest.raises(errors.StorageError, match="damaged.*manifest.ocdbt is missing"):
        execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)


@pytest.mark.usefixtures("no_report")
def test_a_failure_while_labelling_does_not_train_again(workdir, data_dir, finished, monkeypatch):
    folder = phase_folders(workdir)["ceiling"]
    (folder / "result.json").unlink()
    monkeypatch.setattr(phases.training, "train", lambda *_: pytest.fail("trained again"))
    result = execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    assert comparable(result) == comparable(finished[1])


@pytest.mark.usefixtures("no_report")
def test_a_non_finite_loss_stops_the_run_and_names_the_step(
    workdir, data_dir, finished, monkeypatch
):
    name = finished[1]["stages"][-1]["phase"]
    shutil.rmtree(workdir / "phases" / name)
    original = phases.inputs.put_batches

    def poisoned(packed, targets_NC, *more):
        batches = original(packed, targets_NC, *more)
        buckets, number = list(batches.buckets), packed.bucket_S[12]
        targets = buckets[number].batches.targets_BC.at[packed.index_S[12]].set(np.nan)
        poisoned = dataclasses.replace(buckets[number].batches, targets_BC=targets)
        buckets[number] = dataclasses.replace(buckets[number], batches=poisoned)
        return dataclasses.replace(batches, buckets=tuple(buckets))

    monkeypatch.setattr(phases.inputs, "put_batches", poisoned)
    with pytest.raises(errors.TrainingFailed, match="confidence: .*not finite at step 12 of 20"):
        execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    steps = workdir / "phases" / name / "checkpoints" / "steps"
    assert trees.damage(steps / "12") is None
    monkeypatch.setattr(phases.inputs, "put_batches", original)
    result = execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    assert comparable(result) == comparable(finished[1])


def test_logits_that_are_not_finite_stop_the_run(workdir, data_dir, monkeypatch):
    folder = phase_folders(workdir)["ceiling"]
    (folder / "result.json").unlink()

    def broken(self, params):
        logits = np.zeros((self.num_documents, 2), np.float32)
        logits[3] = np.nan
        return logits

    monkeypatch.setattr(phases.prediction.Predictor, "__call__", broken)
    with pytest.raises(errors.TrainingFailed, match="ceiling: .*logits of 1 of 32 documents"):
        execute.run(testing.tiny_config(data_dir), workdir, console=QUIET)
    assert not (folder / "result.json").exists()


def test_a_claimed_phase_is_waited_for(tmp_path):
    """The second holder waits for the first instead of training the same phase."""
    folder = artifacts.PhaseFolder(tmp_path / "weak-0")
    held, release, events = threading.Event(), threading.Event(), []

    def first():
        with artifacts.claim(folder):
            held.set()
            release.wait(10)
            events.append("first done")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(10)
    with artifacts.claim(folder, waiting=lambda: (events.append("waits"), release.set())):
        events.append("second runs")
    thread.join()
    assert events == ["waits", "first done", "second runs"]
    asked_to_stop = artifacts.claim(folder, should_stop=lambda: True)
    with artifacts.claim(folder), pytest.raises(errors.Interrupted), asked_to_stop:
        pytest.fail("the phase was claimed twice")


@pytest.mark.usefixtures("no_report")
def test_phases_in_a_store_are_shared_between_runs(tmp_path, data_dir, finished, monkeypatch):
    workdir, result = finished
    store = shutil.copytree(workdir / "phases", tmp_path / "store")
    monkeypatch.setattr(phases, "run_phase", lambda *_: pytest.fail("trained again"))
    other = execute.run(testing.tiny_config(data_dir), tmp_path / "b", store=store, console=QUIET)
    assert comparable(other) == comparable(result)


@pytest.mark.parametrize("halves", ["shared", "separate"])
def test_the_released_protocol_moves_the_ceiling_to_slice_one(data_dir, halves):
    from w2s_jax.config.validation import validate
    from w2s_jax.planning.plan import plan
    from w2s_jax.planning.resolve import resolve

    config = testing.tiny_config(data_dir)
    config.protocol.name = "released"
    config.protocol.halves = halves
    made = plan(resolve(validate(config)))
    ceiling, student = made.phase(made.ceiling), made.phase(made.students["xent"].phase)
    assert ceiling.inputs["train"] == {"shared": "slice2", "separate": "slice1"}[halves]
    assert student.inputs["train"] == "slice2" and not student.select


def test_agreement_is_measured_against_the_supervisor(finished):
    result = finished[1]
    for student in result["students"].values():
        n, accuracy = result["weak"]["n"], result["weak"]["accuracy"]
        correct = student["agreement_when_correct"] * accuracy * n
        wrong = student["agreement_when_wrong"] * (1 - accuracy) * n
        assert (correct + wrong) / n == pytest.approx(student["agreement"])
        # Where the student agrees with a right label or differs from a wrong one, it is right.
        right = correct + (1 - accuracy) * n - wrong
        assert right / n == pytest.approx(student["accuracy"])
    assert classification.performance_gap_recovered(0.5, 0.6, 0.5)[0] is None


def test_a_trained_model_loads_and_predicts_what_was_recorded(finished, data_dir):
    from w2s_jax.data.tokenize import tokenize
    from w2s_jax.models import heads

    workdir, result = finished
    folder = workdir / "phases" / result["stages"][3]["phase"]
    table = pq.read_table(folder / "predictions.parquet").to_pandas().query("split == 'test'")
    by_id = {d.id: d for d in load_task("tiny", data_dir=str(data_dir))["test"]}
    config, params = models.load_with_head(folder)
    forward = jax.jit(models.forward, static_argnums=0)
    for row in table.head(3).itertuples():
        docs, _ = tokenize(
            [by_id[row.id]], testing.TINY_TOKENIZER, max_length=None, overlong="error"
        )
        hidden = forward(config, models.load(folder)[1], docs.document(0)[None])
        logits = np.asarray(heads.class_logits(params["head"], hidden[:, -1]))[0]
        assert row.p == pytest.approx(1 / (1 + np.exp(logits[0] - logits[1])), abs=1e-5)
    with pytest.raises(errors.InputError, match="neither the folder of a trained phase"):
        models.load(workdir)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# Orbax's writers that fail side by side outlive the event loop that they report to.
@pytest.mark.medium
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    small_disk, data_dir, finished, monkeypatch
):
    workdir = shutil.copytree(finished[0], small_disk / "run")
    shutil.rmtree(workdir / "phases" / finished[1]["stages"][-1]["phase"])
    free = shutil.disk_usage(small_disk).free
    config = testing.tiny_config(data_dir)
    config.checkpoint.every_minutes = 0.0
    (small_disk / "ballast").write_bytes(b"x" * (free - 60_000))
    with pytest.raises(errors.StorageError, match=r"[Nn]o space left"):
        execute.run(config, workdir, console=QUIET)
    (small_disk / "ballast").unlink()
    result = execute.run(config, workdir, console=QUIET)
    assert comparable(result) == comparable(finished[1])


@pytest.mark.parametrize("unwritten", ["report", "result"])
def test_the_table_is_printed_although_the_disk_is_full(
    workdir, data_dir, finished, monkeypatch, capsys, unwritten
):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    if unwritten == "report":
        shutil.rmtree(workdir / "report")
        monkeypatch.setattr(execute, "write_report", full)
    else:
        (workdir / "result.json").unlink()
        monkeypatch.setattr(execute, "write_json", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        execute.run(testing.tiny_config(data_dir), workdir, console=Console(width=160))
    out = capsys.readouterr().out
    assert "ceiling" in out and f"{finished[1]['ceiling']['accuracy']:.3f}" in out
    assert ("result: " in out) == (unwritten == "report") and "report: " not in out
