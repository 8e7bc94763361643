"""Runs on an unlabelled pool, against the same documents with labels."""

import contextlib
import dataclasses
import io
import itertools
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_sweeps import write_sweep

from w2s_jax import phases, sharding, testing
from w2s_jax.cli import main
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.core.files import read_json
from w2s_jax.data.completions import tokenize_completions
from w2s_jax.execution import execute
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts, token_labels, trees
from w2s_jax.store.artifacts import PhaseFolder

pytestmark = pytest.mark.medium

QUIET = Console(quiet=True)
RECORDS = testing.tiny_records(260, seed=3)
TRUTH = {record["text"]: float(record["label"]) for record in RECORDS}
PARTS = {"train": RECORDS[:100], "validation": RECORDS[100:120], "test": RECORDS[120:160],
         "pool": [{"text": record["text"]} for record in RECORDS[160:]]}  # fmt: skip


def write_task(data_dir, names):
    folder = data_dir / "mine"
    folder.mkdir(parents=True)
    for name, rows in zip(names, PARTS.values(), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    config.task.name, config.pretrain.source = "mine", None
    config.losses = ("xent",)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_task(folder, ("train", "validation", "test", "unsupervised"))
    return folder


@pytest.fixture(scope="module")
def sweep(data_dir, tmp_path_factory):
    """The folder of a sweep over `protocol.halves`, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("sweep"), io.StringIO()
    changes = {"task.name": "mine", "task.unlabelled": "unsupervised", "pretrain.source": None,
               "losses": ("xent",)}  # fmt: skip
    points = "over('protocol.halves', ['shared', 'separate'])"
    recipe = write_sweep(folder / "sweep.py", data_dir, points, changes)
    with contextlib.redirect_stdout(printed):
        assert main.main(["sweep", f"--config={recipe}", f"--workdir={folder / 'out'}"]) == 0
    return folder / "out", printed.getvalue()


@pytest.fixture(scope="module")
def runs(sweep):
    """Value of `protocol.halves` -> folder of the run."""
    folders = (sweep[0] / "runs").iterdir()
    of = {read_json(f / "config.json")["config"]["protocol"]["halves"]: f for f in folders}
    return of | {"phases": sweep[0] / "phases"}


def with_labels(resolved):
    """The same documents in the same slices, with the ground truth of the student's slice."""
    roles = {}
    for role, data in resolved.roles.items():
        documents, decode = data.splits["slice2"], testing.TINY_TOKENIZER.decode
        texts = [decode(documents.document(n)[1:-1]) for n in range(len(documents))]
        labels_N = np.array([TRUTH[text] for text in texts], np.float32)
        labelled = dataclasses.replace(documents, labels_N=labels_N)
        roles[role] = dataclasses.replace(
            data,
            splits={**data.splits, "slice2": labelled},
            digests={**data.digests, "slice2": labelled.digest()},
        )
    task = dataclasses.replace(resolved.settings.task, unlabelled=None)
    settings = dataclasses.replace(resolved.settings, task=task)
    return dataclasses.replace(resolved, roles=roles, settings=settings)


def test_the_pool_gives_the_bits_of_the_same_documents_with_labels(data_dir, runs, tmp_path):
    """Weak labels, student, ceiling and predictions do not depend on labels that are hidden."""
    config = config_of(data_dir, task__unlabelled="unsupervised", protocol__halves="separate")
    resolved = resolve(validate(config))
    hidden, labelled = plan(resolved), plan(with_labels(resolved))
    titles = [phase.title for phase in labelled.phases]
    assert titles == [phase.title for phase in hidden.phases] == ["weak", "ceiling", "student xent"]
    context = phases.Context(
        with_labels(resolved), tmp_path, sharding.make_mesh(), QUIET, lambda: False
    )
    for phase, same in zip(labelled.phases, hidden.phases, strict=True):
        # The digest of the labelled slice is another one, except where it is not used.
        assert (phase.name == same.name) == (phase.title == "ceiling")
        context.folder(phase.name).path.mkdir(parents=True)
        phases.run_phase(phase, context)
        own, other = context.folder(phase.name), PhaseFolder(runs["phases"] / same.name)
        for folder in (own, other):
            assert folder.complete
        found, wanted = (artifacts.read_predictions(f.predictions, "test") for f in (own, other))
        for column in ("id", "p", "label", "ground_truth"):
            np.testing.assert_array_equal(found[column], wanted[column])
        params = [trees.load_tree(folder.final, None) for folder in (own, other)]
        jax.tree.map(np.testing.assert_array_equal, *params)
        if phase.title == "weak":
            labels = [artifacts.stored_labels(folder)["slice2"] for folder in (own, other)]
            for found_N, wanted_N in zip(*labels, strict=True):
                np.testing.assert_array_equal(found_N, wanted_N)


def test_prompts_without_targets_give_the_bits_of_those_with_targets(tmp_path):
    """Completions, student and predictions do not depend on targets that are hidden."""
    texts = ["".join(letters) for letters in itertools.product("abcdef", repeat=3)]
    rows = [{"prompt": text, "target": text[1]} for text in texts[::-1]]
    folder = tmp_path / "data" / "letters"
    folder.mkdir(parents=True)
    parts = {"train": rows[::3], "test": rows[1::3], "asked": rows[2::3]}
    for name, part in parts.items():
        hidden = [{"prompt": row["prompt"]} for row in part] if name == "asked" else part
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in hidden))
    config = config_of(folder.parent, task__name="letters", task__unlabelled="asked",
                       task__validation_docs=16, train__steps=3)  # fmt: skip
    result = execute.run(config, tmp_path / "run", console=QUIET)
    assert result["ceiling"] is None and result["students"]["xent"]["pgr"] is None
    resolved = resolve(validate(config))
    documents = [dataclasses.replace(d, target=d.text[1]) for d in resolved.documents["slice2"]]
    labelled, _ = tokenize_completions(
        documents, testing.TINY_TOKENIZER, max_length=None, overlong="error"
    )
    roles = {
        role: dataclasses.replace(
            data,
            splits={**data.splits, "slice2": labelled},
            digests={**data.digests, "slice2": labelled.digest()},
        )
        for role, data in resolved.roles.items()
    }
    task = dataclasses.replace(resolved.settings.task, unlabelled=None)
    settings = dataclasses.replace(resolved.settings, task=task)
    shown = dataclasses.replace(
        resolved, roles=roles, settings=settings,
        documents={**resolved.documents, "slice2": documents},
    )  # fmt: skip
    context = phases.Context(shown, tmp_path / "shown", sharding.make_mesh(), QUIET, lambda: False)
    store = tmp_path / "run" / "phases"
    wanted = {phase.title: PhaseFolder(store / phase.name) for phase in plan(resolved).phases}
    for phase in [p for p in plan(shown).phases if p.title != "ceiling"]:
        context.folder(phase.name).path.mkdir(parents=True)
        phases.run_phase(phase, context)
        pair = (context.folder(phase.name), wanted[phase.title])
        found, same = (artifacts.read_predictions(f.predictions, "test") for f in pair)
        for column in ("id", "text", "correct", "logprob"):
            np.testing.assert_array_equal(found[column], same[column])
        jax.tree.map(np.testing.assert_array_equal, *(trees.load_tree(f.final, None) for f in pair))
        if phase.title == "weak":
            made = [token_labels.stored(folder, "slice2") for folder in pair]
            assert made[0].texts == made[1].texts
            np.testing.assert_array_equal(made[0].tokens_NT, made[1].tokens_NT)


def nulls(value):
    raise AssertionError(f"{value} in JSON")


def test_a_result_without_a_ceiling(runs):
    text = (runs["shared"] / "result.json").read_text()
    result = json.loads(text, parse_constant=nulls)
    assert result["ceiling"] is None
    assert "ceiling" not in {stage["kind"] for stage in result["stages"]}
    student = result["students"]["xent"]
    for field in ("pgr", "pgr_low", "pgr_high", "gap_low", "gap_high"):
        assert student[field] is None
    assert "protocol.halves=separate" in student["pgr_note"]
    with_ceiling = json.loads((runs["separate"] / "result.json").read_text())
    assert with_ceiling["weak"] == result["weak"]
    for field in ("accuracy", "agreement", "phase"):
        assert with_ceiling["students"]["xent"][field] == student[field]
    accuracy = {r: with_ceiling[r]["accuracy"] for r in ("weak", "ceiling")}
    if accuracy["ceiling"] > accuracy["weak"]:
        gain = student["accuracy"] - accuracy["weak"]
        expected = gain / (accuracy["ceiling"] - accuracy["weak"])
        assert with_ceiling["students"]["xent"]["pgr"] == pytest.approx(expected)


def test_reports_and_the_terminal_without_a_ceiling(sweep, runs, tmp_path, capsys):
    from w2s_jax.report import print_result

    print_result(read_json(runs["shared"] / "result.json"), Console(width=100))
    out = capsys.readouterr().out
    assert "note: There is no ceiling, so no PGR" in out and "exceed" not in out
    assert not [line for line in out.splitlines() if line.startswith("ceiling")]
    assert main.main(["report", str(runs["shared"]), f"--out={tmp_path / 'one'}"]) == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert "and there is no ceiling, so no PGR" in page and "No ceiling" in page
    assert "does not exceed" not in page and "No gap to recover" not in page
    assert "no student has a defined PGR" in page
    # The sweep's own report has both runs.
    folder, printed = sweep
    rows = (folder / "report" / "table.csv").read_text().splitlines()
    assert sum(",ceiling," in row for row in rows) == 1
    page = (folder / "report" / "report.html").read_text()
    assert "2 runs in 2 settings" in page and "There is no ceiling, so no PGR" in page
    assert not re.search(r">\s*(nan|none)\s*<", page, re.IGNORECASE)
    lines = [line for line in printed.splitlines() if ": weak 0." in line]
    assert len(lines) == 2 and sum("ceiling" in line for line in lines) == 1


def test_labels_from_outside_have_no_accuracy_on_the_pool(data_dir, tmp_path):
    """Under `shared`, the supervisor's file is all that a student learns from."""
    config = config_of(data_dir, task__unlabelled="unsupervised", train__steps=2)
    splits = resolve(validate(config)).roles["weak"].splits
    ids = np.concatenate([splits[s].ids_N for s in ("slice2", "validation", "test")]).tolist()
    labels = tmp_path / "labels.csv"
    labels.write_text("id,p\n" + "".join(f"{id_},{0.2 + 0.6 * (id_ % 2)}\n" for id_ in ids))
    config.weak.labels = str(labels)
    result = execute.run(config, tmp_path / "run", console=QUIET)
    (phase,) = [s["phase"] for s in result["stages"] if s["kind"] == "labels"]
    text = (tmp_path / "run" / "phases" / phase / "result.json").read_text()
    accuracy = json.loads(text, parse_constant=nulls)["label_accuracy"]
    assert accuracy["slice2"] is None and 0 < accuracy["test"] < 1
    assert result["ceiling"] is None


def test_the_layout_of_public_harnesses_runs_as_it_is(runs, tmp_path):
    write_task(tmp_path / "data", ("train_label", "validation", "test", "train_unlabel"))
    config = config_of(tmp_path / "data", train__steps=2)
    result = execute.run(config, tmp_path / "run", console=QUIET)
    assert result["ceiling"] is None and result["students"]["xent"]["pgr"] is None
    config.task.unlabelled = "train_unlabel"
    assert execute.run(config, tmp_path / "run", console=QUIET) == result
    config.task.unlabelled = "test"
    with pytest.raises(errors.InputError, match="labels"):
        execute.run(config, tmp_path / "run", console=QUIET)
    pool = (tmp_path / "data" / "mine" / "train_unlabel.jsonl").read_text()
    (tmp_path / "data" / "mine" / "part.jsonl").write_text(
        pool[: len(pool) // 2].rpartition("\n")[0]
    )
    config.task.unlabelled = "part"
    with pytest.raises(errors.InputError, match="task.unlabelled"):
        execute.run(config, tmp_path / "run", console=QUIET)
