"""Runs on other kinds of data: preference pairs, soft labels, streamed text, other tokenizers."""

import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
from rich.console import Console

from w2s_jax import models, phases, sharding, testing
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.data import packing_shapes
from w2s_jax.data.loading import load, load_task
from w2s_jax.data.splits import make_splits
from w2s_jax.data.tokenize import tokenize
from w2s_jax.data.tokenizers import ByteTokenizer
from w2s_jax.execution import execute
from w2s_jax.phases import inputs
from w2s_jax.planning.plan import plan
from w2s_jax.planning.pretraining_text import stream_digest
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import trees

pytestmark = pytest.mark.usefixtures("no_report")

QUIET = Console(quiet=True)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair_rows(count, seed=0):
    """Two texts of the tiny task, one of each class; the favourable one is better."""
    records = testing.tiny_records(2 * count, seed)
    rng = np.random.default_rng(seed)
    rows = []
    for bad, good in zip(records[::2], records[1::2], strict=True):
        label = int(rng.integers(2))
        texts = [bad["text"], good["text"]] if label else [good["text"], bad["text"]]
        rows.append({"text_a": texts[0], "text_b": texts[1], "label": label})
    return rows


def config_of(folder, name, rows, loss):
    """A run on a task of 140 documents for training and the others for the test."""
    write(folder / name / "train.jsonl", rows[:140])
    write(folder / name / "test.jsonl", rows[140:])
    config = testing.tiny_config(folder)
    config.task.name, config.task.validation_docs = name, 20
    config.pretrain.source = None
    config.losses = (loss,)
    return config


@pytest.mark.slow
def test_preference_pairs_from_file_to_result(tmp_path):
    config = config_of(tmp_path / "data", "pairs", pair_rows(200), "confidence")
    workdir = tmp_path / "run"
    result = execute.run(config, workdir, console=QUIET)
    assert result["students"]["confidence"]["n"] == result["weak"]["n"]
    folder = workdir / "phases" / result["stages"][-1]["phase"]
    assert json.loads((folder / "config.json").read_text())["spec"]["texts"] == 2
    model, params = models.load_with_head(folder)
    assert params["head"]["kernel"].shape == (model.d_model, 1)
    table = pq.read_table(folder / "predictions.parquet").to_pandas().query("split == 'test'")
    by_id = {d.id: d for d in load_task("pairs", data_dir=str(tmp_path / "data"))["test"]}
    forward = jax.jit(models.forward, static_argnums=0)
    for row in table.head(3).itertuples():
        docs, _ = tokenize(
            [by_id[row.id]], testing.TINY_TOKENIZER, max_length=None, overlong="error"
        )
        rewards = [
            float(forward(model, params["backbone"], docs.document(0, k)[None])[0, -1]
                  @ params["head"]["kernel"][:, 0])
            for k in range(2)
        ]  # fmt: skip
        assert row.p == pytest.approx(1 / (1 + np.exp(rewards[0] - rewards[1])), abs=1e-5)
        assert row.ground_truth == by_id[row.id].label


@pytest.mark.slow
def test_soft_labels_are_learnt_from_and_judged_by_their_half(tmp_path):
    rows = [
        {"text": r["text"], "soft_label": 0.9 if r["label"] else 0.3}
        for r in testing.tiny_records(200)
    ]
    config = config_of(tmp_path / "data", "judged", rows, "xent")
    result = execute.run(config, tmp_path / "run", console=QUIET)
    folder = tmp_path / "run" / "phases" / result["stages"][0]["phase"]
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    assert set(table.label) == {np.float32(0.9), np.float32(0.3)}
    assert ((table.label > 0.5) == table.ground_truth.astype(bool)).all()
    test = table.query("split == 'test'")
    assert result["weak"]["accuracy"] == ((test.p > 0.5) == test.ground_truth).mean()


@pytest.fixture
def streamed(tmp_path):
    """A phase that pretrains on a stream, and what it runs in."""
    data_dir = testing.write_tiny_task(tmp_path / "data")
    config = testing.tiny_config(data_dir)
    config.pretrain.streaming = True
    config.pretrain.source = str(data_dir / "corpus" / "train.jsonl")
    config.pretrain.chunk_length, config.pretrain.steps = 32, 40
    config.pretrain.microbatch_size = 8
    resolved = resolve(validate(config))
    (phase, *_) = plan(resolved).phases
    assert phase.kind == "pretrain"
    return config, resolved, phase


def run_phase(streamed, store, should_stop=lambda: False):
    _, resolved, phase = streamed
    context = phases.Context(resolved, store, sharding.make_mesh(), QUIET, should_stop)
    context.folder(phase.name).path.mkdir(parents=True, exist_ok=True)
    phases.run_phase(phase, context)
    return trees.load_tree(context.folder(phase.name).final, None)


@pytest.mark.medium
def test_streamed_pretraining_resumes_bit_for_bit(streamed, tmp_path):
    whole = run_phase(streamed, tmp_path / "whole")
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(errors.Interrupted):
        run_phase(streamed, tmp_path / "halved", should_stop)
    again = run_phase(streamed, tmp_path / "halved")
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    results = [
        json.loads((tmp_path / name / streamed[2].name / "result.json").read_text())
        for name in ("whole", "halved")
    ]
    assert results[0]["real_token_share"] == results[1]["real_token_share"] > 0.95
    rows = (tmp_path / "whole" / streamed[2].name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_stream_is_part_of_the_fingerprint(streamed):
    config, _, phase = streamed
    path = config.pretrain.source
    other = plan(resolve(validate(config)))
    assert other.phases[0].name == phase.name
    with open(path, "a") as file:
        file.write('{"text": "one more"}\n')
    assert plan(resolve(validate(config))).phases[0].name != phase.name
    # The tokenizer's content counts as well.
    corpus, bytes_ = resolve(validate(config)).roles["weak"].streams["pretrain"], ByteTokenizer()
    digests = {stream_digest(corpus, bytes_)}
    object.__setattr__(bytes_, "digest", "other")
    assert stream_digest(corpus, bytes_) not in digests
    names = set()
    for length in (16, 32):
        config.pretrain.chunk_length = length
        names.add(plan(resolve(validate(config))).phases[0].name)
    assert len(names) == 2
    # A folder of the data folder is found as well.
    config.pretrain.source = "corpus"
    assert plan(resolve(validate(config))).phases[0].name != phase.name
    config.pretrain.steps = None
    with pytest.raises(errors.InputError, match=r"pretrain\.steps: None"):
        resolve(validate(config))
    config.pretrain.steps, config.pretrain.source = 4, "nowhere"
    with pytest.raises(errors.InputError, match=r"pretrain\.source: .*nowhere"):
        resolve(validate(config))


def test_over_long_documents_are_dropped_before_anything_is_balanced(tmp_path):
    rows = [
        {"text": f"{i:03d} " + "long " * (20 if i % 3 == 0 and i % 2 else 1), "label": i % 2}
        for i in range(240)
    ]
    write(tmp_path / "mixed" / "train.jsonl", rows[:180])
    write(tmp_path / "mixed" / "test.jsonl", rows[180:])
    config = testing.tiny_config(tmp_path)
    config.task.name, config.task.overlong, config.task.max_length = "mixed", "drop", 20
    config.task.test_docs, config.task.validation_docs = 32, 16
    config.pretrain.source = None
    resolved = resolve(validate(config))
    test = resolved.roles["weak"].splits["test"]
    assert len(test) == 32 and test.labels_N.sum() == 16 and test.longest <= 20
    assert len(resolved.roles["weak"].splits["validation"]) == 16
    halves = [resolved.roles["weak"].splits[name] for name in ("slice1", "slice2")]
    assert all(abs(half.labels_N.mean() - 0.5) < 0.05 for half in halves)
    assert any("train: 30 of 180 documents exceed" in note for note in resolved.notes)


def test_soft_labels_beside_labels_are_learnt_and_not_what_counts(tmp_path):
    rows = [
        {"text": r["text"], "label": r["label"], "soft_label": 0.75 if i % 2 else 0.25}
        for i, r in enumerate(testing.tiny_records(200, seed=3))
    ]
    write(tmp_path / "both" / "train.jsonl", rows)
    config = testing.tiny_config(tmp_path)
    config.task.name, config.task.test_docs, config.task.validation_docs = "both", 32, 16
    config.pretrain.source = None
    resolved = resolve(validate(config))
    half = resolved.roles["weak"].splits["slice1"]
    assert set(half.labels_N) == {0, 1} and set(half.soft_N) == {0.25, 0.75}
    weak = next(p for p in plan(resolved).phases if p.kind == "weak")
    context = phases.Context(resolved, tmp_path, sharding.make_mesh(), QUIET, lambda: False)
    targets_NC = inputs.TrainingInputs(weak, context).targets_NC
    np.testing.assert_array_equal(targets_NC[:, 1], half.soft_N)
    plain = [{k: v for k, v in row.items() if k != "soft_label"} for row in rows]
    write(tmp_path / "both" / "train.jsonl", plain)
    again = resolve(validate(config))
    np.testing.assert_array_equal(again.roles["weak"].splits["slice1"].ids_N, half.ids_N)
    assert again.digests["slice1"] != resolved.digests["slice1"]


def test_a_hugging_face_tokenizer_by_config(tmp_path):
    data_dir = testing.write_tiny_task(tmp_path / "data")
    texts = [record["text"] for record in testing.tiny_records(100)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = testing.tiny_config(data_dir)
    config.task.tokenizer = str(tmp_path / "tokenizer.json")
    config.pretrain.source = None
    resolved = resolve(validate(config))
    assert resolved.roles["weak"].model.vocab_size == backend.get_vocab_size()
    labels = (backend.token_to_id("0"), backend.token_to_id("1"))
    assert resolved.roles["weak"].label_tokens == labels
    documents = {d.id: d for d in load("tiny", data_dir=str(data_dir)).documents["test"]}
    test = resolved.roles["weak"].splits["test"]
    for n in range(len(test)):
        wanted = backend.encode(documents[int(test.ids_N[n])].text).ids
        assert test.document(n).tolist() == wanted
    config.task.tokenizer = "byte"
    with pytest.raises(errors.InputError, match=r"task\.tokenizer: .*'byte'.*'bytes'"):
        resolve(validate(config))


def test_a_warning_of_a_task_reaches_the_notes(tmp_path):
    rows = [
        {
            "chosen": f"\n\nHuman: {i}?\n\nAssistant: {r['text']}",
            "rejected": f"\n\nHuman: {i}?\n\nAssistant: no {r['text']}",
        }
        for i, r in enumerate(testing.tiny_records(80))
    ]
    write(tmp_path / "hh_rlhf_helpful" / "train.jsonl", rows)
    config = testing.tiny_config(tmp_path)
    config.task.name, config.task.test_docs, config.task.validation_docs = "anthropic_hh", 16, 16
    config.pretrain.source, config.train.batch_size = None, 8
    notes = resolve(validate(config)).notes
    assert any("chance" in note for note in notes), notes
    assert any("from files" in note and "hh_rlhf_helpful" in note for note in notes)


def test_make_splits_of_pairs_keeps_prompts_on_one_side(tmp_path):
    rows = [
        {
            "chosen": f"\n\nHuman: {i // 3}?\n\nAssistant: yes {i}",
            "rejected": f"\n\nHuman: {i // 3}?\n\nAssistant: no {i}",
        }
        for i in range(90)
    ]
    write(tmp_path / "hh_rlhf_helpful" / "train.jsonl", rows)
    documents = load_task("hh_rlhf_helpful", data_dir=str(tmp_path))
    splits = make_splits(documents, train_docs=None, test_docs=12, validation_docs=0, balance=True)
    prompts = {
        name: {d.texts[0].split("?")[0] for d in docs} for name, docs in splits.items() if docs
    }
    assert len(prompts) == 3
    for a, b in (("slice1", "slice2"), ("slice1", "test"), ("slice2", "test")):
        assert not prompts[a] & prompts[b]


@pytest.mark.slow
def test_batches_of_several_shapes_resume_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(packing_shapes, "SHAPE_STEPS", 0)
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.pretrain.steps, config.pretrain.max_shapes = 30, 3
    resolved = resolve(validate(config))
    (phase, *_) = plan(resolved).phases
    context = phases.Context(resolved, tmp_path, sharding.make_mesh(), QUIET, lambda: False)
    batches, _ = phases.inputs.TrainingInputs(phase, context).batches(
        context.mesh, phases.parameters.Parameters({}, {})
    )
    assert len(batches.buckets) == 3 and len(set(batches.host_bucket_S[15:30])) == 3
    whole = run_phase((config, resolved, phase), tmp_path / "whole")
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 3  # after 15 of 30 steps

    with pytest.raises(errors.Interrupted):
        run_phase((config, resolved, phase), tmp_path / "halved", should_stop)
    again = run_phase((config, resolved, phase), tmp_path / "halved")
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    # One shape gives the same up to the order of sums.
    config.pretrain.max_shapes = 1
    other = resolve(validate(config))
    (same, *_) = plan(other).phases
    assert same.name == phase.name
    one = run_phase((config, other, same), tmp_path / "one")
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (one, whole)]
    assert np.linalg.norm(flat[0] - flat[1]) < 1e-3 * np.linalg.norm(flat[1])
