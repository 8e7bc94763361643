"""Runs with pretrained models, and with a part of a model trained."""

import json
import shutil

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import tiny
from flax import traverse_util
from refusals import error
from rich.console import Console

from w2s_jax import models, sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.config import default_config
from w2s_jax.config.validation import validate
from w2s_jax.core.errors import InputError
from w2s_jax.execution import execute
from w2s_jax.models import loading, lora, sources
from w2s_jax.models.convert import convert
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.optimizer import round_stochastically
from w2s_jax.training.prediction import Predictor

pytestmark = pytest.mark.usefixtures("no_report")

QUIET = Console(quiet=True)


def write_tokenizer(folder):
    """A fast tokenizer of words for the tiny task."""
    import tokenizers as tk

    words = sorted({w for r in testing.tiny_records(400) for w in r["text"].split()})
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "0": 4, "1": 5}
    vocab |= {word: 6 + i for i, word in enumerate(words)}
    backend = tk.Tokenizer(tk.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    backend.save(str(folder / "tokenizer.json"))
    described = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **described})
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(data folder, {model type: folder of a tiny pretrained model with its tokenizer})."""
    root = tmp_path_factory.mktemp("pretrained")
    folders = {}
    for model_type in ("gpt2", "llama", "bert"):
        folders[model_type] = root / model_type
        tiny(model_type, folders[model_type])
        write_tokenizer(folders[model_type])
    return testing.write_tiny_task(root / "data"), folders


def config_of(places, model_type="llama", **changes):
    """A run whose strong model is pretrained, and whose weak one is embedded and reads bytes."""
    data_dir, folders = places
    config = testing.tiny_config(data_dir)
    config.pretrain.source = None
    config.train.steps = 8
    config.eval.every = 4
    config.losses = ("xent",)
    config.strong.model = str(folders[model_type])
    config.strong.train.learning_rate = 1e-2
    config.probe.steps, config.probe.batch_size = 40, 32
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def run(config, workdir):
    return execute.run(config, workdir, console=QUIET)


def phase_of(result, kind):
    return next(stage["phase"] for stage in result["stages"] if stage["kind"] == kind)


def recorded(folder, documents):
    """P(label 1) of the test documents as the phase wrote it."""
    rows = artifacts.read_predictions(PhaseFolder(folder).predictions, "test")
    assert rows["id"].tolist() == documents.ids_N.tolist()
    return rows["p"]


def predicted(folder, documents):
    """The same from the model as it loads."""
    mesh = sharding.mesh_of((1, 1, 1))
    config, params = models.load_with_head(folder, mesh)
    logits = Predictor(config, documents, mesh)(params)
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


ADAPTS = {
    "full": {},
    "lora": {"strong__lora__rank": 2, "strong__lora__targets": ("attention.*",)},
    "last_layers": {},
    "probe": {},
    "probe_then_full": {},
}


#: Each way once, and each of the models.
PAIRS = [
    ("lora", "llama"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (
            ("full", "bert"),
            ("last_layers", "llama"),
            ("probe", "gpt2"),
            ("probe_then_full", "llama"),
        )
    ),
]


@pytest.mark.medium
@pytest.mark.parametrize("adapt,model_type", PAIRS)
def test_a_run_trains_what_it_should_and_its_models_load(tmp_path, places, model_type, adapt):
    config = config_of(places, model_type, strong__train__adapt=adapt, **ADAPTS[adapt])
    result = run(config, tmp_path)
    assert result["ceiling"]["model"] == model_type and result["weak"]["model"] == "gpt-d8"
    data = resolve(validate(config)).roles
    assert data["weak"].tokenizer.name == "bytes" != data["strong"].tokenizer.name
    documents = data["strong"].splits["test"]
    assert data["weak"].splits["test"].ids_N.tolist() == documents.ids_N.tolist()
    for kind in ("student", "ceiling"):
        folder = tmp_path / "phases" / phase_of(result, kind)
        np.testing.assert_allclose(
            predicted(folder, documents), recorded(folder, documents), atol=1e-5
        )
    base, params = (models.load(place)[1] for place in (places[1][model_type], folder))
    same = jax.tree.map(np.array_equal, base, params)
    moved = {path for path, equal in traverse_util.flatten_dict(same, sep=".").items() if not equal}
    every = set(traverse_util.flatten_dict(base, sep="."))
    expected = {
        "full": {p for p in every if not p.startswith(("unembedding", "pooler"))},
        "probe_then_full": {p for p in every if not p.startswith("unembedding")},
        "lora": {p for p in every if "blocks.attention." in p and p.endswith("kernel")},
        "last_layers": {p for p in every if p.startswith(("blocks", "final_norm"))},
        "probe": set(),
    }[adapt]
    # A key's bias moves no attention, and so has next to no gradient.
    assert moved - {"blocks.attention.key.bias"} == expected - {"blocks.attention.key.bias"}
    if adapt == "last_layers":
        first = (jax.tree.map(lambda x: x[:-1], tree["blocks"]) for tree in (base, params))
        jax.tree.map(np.testing.assert_array_equal, *first)


@pytest.mark.slow
def test_adapters_stand_apart_and_leave_through_convert(tmp_path, places, capsys):
    config = config_of(places, strong__train__adapt="lora", strong__lora__rank=2)
    result = run(config, tmp_path / "run")
    folder = tmp_path / "run" / "phases" / phase_of(result, "ceiling")
    found = loading.load_adapted(folder)
    assert found.config.lora_rank == 2 and found.config.lora_alpha == 16
    merged = lora.merge(found.config, found.params)[1]
    jax.tree.map(np.testing.assert_array_equal, merged, models.load(folder)[1])
    stored = sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
    whole = sum(x.nbytes for x in jax.tree.leaves(merged))
    assert stored < whole, "the base is not stored again"
    convert(str(folder), tmp_path / "adapters", "peft")
    record = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (record["r"], record["task_type"]) == (2, "SEQ_CLS")
    assert record["base_model_name_or_path"] == str(places[1]["llama"])
    convert(str(folder), tmp_path / "whole", "huggingface")
    convert(str(folder), tmp_path / "headless", "huggingface", head=False)
    assert "LlamaForCausalLM" in (tmp_path / "headless" / "config.json").read_text()
    main(["models", str(folder)])
    assert f"{found.config.num_parameters():,}" in capsys.readouterr().out
    assert (tmp_path / "whole" / "tokenizer.json").exists()
    assert "LlamaForSequenceClassification" in (tmp_path / "whole" / "config.json").read_text()
    assert "no low-rank adapters" in error(loading.load_adapted, places[1]["llama"])
    apart = error(models.export_huggingface, found.config, found.params, tmp_path / "apart")
    assert "has adapters; merge them first" in apart and not (tmp_path / "apart").exists()


@pytest.mark.slow
def test_a_base_that_has_changed_is_refused(tmp_path, places):
    moved = tmp_path / "model"
    shutil.copytree(places[1]["llama"], moved)
    config = config_of(places, strong__train__adapt="last_layers", strong__model=str(moved))
    result = run(config, tmp_path / "run")
    folder = tmp_path / "run" / "phases" / phase_of(result, "ceiling")
    models.load(folder)
    used = config_of(places, strong__model=str(folder))
    assert sources.find(folder).digest == sources.find(folder).digest
    moved.rename(tmp_path / "away")
    assert "strong.model: " + str(folder) in error(resolve, validate(used))
    assert (
        run(
            config_of(
                places, strong__train__adapt="last_layers", strong__model=str(tmp_path / "away")
            ),
            tmp_path / "run",
        )
        == result
    )
    assert f"{folder}: its base model is missing" in error(models.load, folder)
    (tmp_path / "away").rename(moved)
    tiny("llama", moved, seed=5)
    assert "has changed in" in error(models.load, folder)
    message = error(run, config, tmp_path / "run")
    assert "the model of strong" in message and "documents" not in message


@pytest.mark.slow
def test_probes_share_their_features_and_a_phase_is_a_model(tmp_path, places):
    config = config_of(places, strong__train__adapt="probe", losses=("xent", "confidence"))
    phases = plan(resolve(validate(config))).phases
    assert [p.kind for p in phases] == ["features", "weak", "ceiling", "student", "student"]
    config.weak.model = config.strong.model = str(places[1]["gpt2"])
    config.weak.train.adapt = "full"
    result = run(config, tmp_path / "first")
    folder = tmp_path / "first" / "phases" / phase_of(result, "weak")
    again = config_of(places, strong__model=str(folder), strong__train__adapt="lora")
    # The tokenizer that it read with lies beside it.
    for name in artifacts.PhaseFolder(folder).tokenizer.iterdir():
        assert name.read_bytes() == (places[1]["gpt2"] / name.name).read_bytes()
    second = run(again, tmp_path / "second")
    assert second["ceiling"]["model"] == folder.name
    assert resolve(validate(again)).roles["strong"].tokenizer is not None


@pytest.mark.slow
def test_a_probed_head_is_kept_for_what_follows(tmp_path, places):
    config = config_of(places, strong__train__adapt="probe_then_full")
    config.checkpoint.keep_final = False
    result = run(config, tmp_path)
    finals = {path.parents[1].name for path in tmp_path.glob("phases/*/checkpoints/final")}
    assert finals == {s["phase"] for s in result["stages"] if s["kind"] == "probe"}


@pytest.mark.slow
def test_pairs_are_probed_by_the_difference_of_their_rewards(tmp_path, places):
    data_dir = tmp_path / "data"
    records = testing.tiny_records(400)
    rows = [
        {"text_a": a["text"], "text_b": b["text"], "label": b["label"]}
        for a, b in zip(records[::2], records[1::2], strict=True)
        for a, b in ((a, b), (b, a))
    ]
    for split, part in (("train", rows[:240]), ("validation", rows[240:300]), ("test", rows[300:])):
        (data_dir / "pairs").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in part)
        (data_dir / "pairs" / f"{split}.jsonl").write_text(text)
    config = config_of(places, strong__train__adapt="probe", task__name="pairs")
    config.task.data_dir = str(data_dir)
    result = run(config, tmp_path / "run")
    documents = resolve(validate(config)).roles["strong"].splits["test"]
    assert documents.num_texts == 2
    folder = tmp_path / "run" / "phases" / phase_of(result, "ceiling")
    np.testing.assert_allclose(predicted(folder, documents), recorded(folder, documents), atol=1e-5)


def test_roles_read_with_their_own_tokenizers_up_to_their_own_limits(places):
    config = config_of(places, "gpt2", strong__tokenizer="bytes")
    message = error(resolve, validate(config))
    assert "259 tokens" in message and "64 rows" in message and "model.safetensors" in message
    longest = {
        role: data.splits["test"].longest
        for role, data in resolve(validate(config_of(places, "gpt2"))).roles.items()
    }
    assert longest["strong"] < 12 < longest["weak"], "words and bytes"
    config = config_of(places, "bert")
    config.strong.model = config.weak.model
    config.weak.model = str(places[1]["bert"])
    short = json.loads((places[1]["bert"] / "config.json").read_text())["max_position_embeddings"]
    assert short == 48
    config.weak.tokenizer = "bytes"
    with pytest.raises(InputError, match="64 rows"):
        resolve(validate(config))


def test_learned_positions_are_the_limit_of_their_role(tmp_path, places, monkeypatch):
    monkeypatch.setitem(checkpoints.SIZES, "max_position_embeddings", 6)
    tiny("gpt2", tmp_path / "short")
    write_tokenizer(tmp_path / "short")
    for limit in (None, 40):
        config = config_of(places, strong__model=str(tmp_path / "short"), task__max_length=limit)
        resolved = resolve(validate(config))
        longest = {r: data.splits["test"].longest for r, data in resolved.roles.items()}
        assert longest["strong"] == 6 and longest["weak"] > 20
        assert any(
            "strong: documents are limited to the 6 tokens of short" in note
            for note in resolved.notes
        )
    shorter = config_of(places, strong__model=str(tmp_path / "short"), task__max_length=5)
    assert resolve(validate(shorter)).roles["strong"].splits["test"].longest == 5


def test_learning_rates_and_dtypes_come_from_the_model(places):
    config = config_of(places)
    config.strong.train = default_config().strong.train
    config.train.learning_rate = None
    settings = resolve(validate(config)).settings
    assert (settings.weak.train.learning_rate, settings.strong.train.learning_rate) == (1e-3, 5e-5)
    config.strong.train.adapt = "lora"
    settings = resolve(validate(config)).settings
    assert settings.strong.train.learning_rate == pytest.approx(5e-4)
    assert settings.strong.probe.learning_rate == 1e-3
    assert settings.strong.train.param_dtype == "float32"


def test_an_encoder_starts_from_a_zero_head_and_predicts_no_next_token(places):
    config = config_of(places, "bert")
    resolved = resolve(validate(config))
    assert resolved.roles["strong"].label_tokens == ()
    assert any("no unembedding" in note for note in resolved.notes)
    specs = {p.kind: p.spec for p in plan(resolved).phases}
    assert (specs["student"]["head_init"], specs["weak"]["head_init"]) == ("zeros", "unembedding")
    assert specs["student"]["model"]["read_out"] == "first"
    mean = plan(resolve(validate(config_of(places, "bert", strong__read_out="mean"))))
    assert mean.phase(mean.ceiling).model.read_out == "mean"
    assert mean.ceiling != plan(resolved).ceiling and mean.weak == plan(resolved).weak
    config.strong.pretrain.source, config.strong.pretrain.steps = "corpus", 2
    assert "encoder" in error(resolve, validate(config))
    folder = places[0] / "questions"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "w0", "target": "w1"}\n')
    config.strong.pretrain.source, config.task.name = None, "questions"
    message = error(resolve, validate(config))
    assert message.startswith("strong.model: ") and "is an encoder, which generates" in message


def test_fingerprints_know_weights_and_not_where_they_lie(tmp_path, places):
    def names(folder):
        made = plan(resolve(validate(config_of(places, strong__model=str(folder)))))
        return made.weak, made.ceiling

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(places[1]["llama"], elsewhere)
    assert names(elsewhere) == names(places[1]["llama"])
    tiny("llama", elsewhere, seed=5)
    weak, ceiling = names(elsewhere)
    assert weak == names(places[1]["llama"])[0] and ceiling != names(places[1]["llama"])[1]


def test_bad_models_are_one_line_before_anything_is_written(tmp_path, places):
    for model, parts in (
        ("gpt-d9", ("strong.model", "gpt-d9", "did you mean 'gpt-d8'")),
        (str(tmp_path / "nothing" / "here"), ("strong.model", "no such folder")),
        (str(places[0]), ("strong.model", "safetensors")),
    ):
        message = error(run, config_of(places, strong__model=model), tmp_path / "run")
        assert all(part in message for part in parts), message
    last = config_of(places, strong__train__adapt="last_layers", strong__train__last_layers=3)
    assert "at most the 2 layers" in error(run, last, tmp_path / "run")
    probe = config_of(places, strong__train__adapt="probe", probe__batch_size=500)
    assert "strong.probe.batch_size: 500" in error(run, probe, tmp_path / "run")
    adapted = config_of(places, strong__train__adapt="lora", lora__targets=("attn.*",))
    assert "lora.targets" in error(run, adapted, tmp_path / "run")
    pooled = config_of(places, strong__read_out="pooler")
    assert "strong.read_out: 'pooler'" in error(run, pooled, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bfloat16_parameters_round_so_that_small_updates_add_up(tmp_path, places):
    """At 1e-5 of the parameters' size every update would be lost to the nearest bfloat16."""
    weight = jnp.full(4096, 1.0, jnp.bfloat16)

    @jax.jit
    def step(weight, number):
        key = jax.random.fold_in(jax.random.key(0), number)
        return round_stochastically(weight.astype(jnp.float32) + 1e-5, key)

    for number in range(200):
        weight = step(weight, number)
    assert weight.dtype == jnp.bfloat16
    # The mean of 4096 walks, each of 200 steps of 2**-7 with probability 1e-5 * 2**7.
    spread = 2**-7 * np.sqrt(200 * 1e-5 * 2**7 / 4096)
    assert abs(float(weight.astype("f4").mean()) - 1.002) < 5 * spread
    config = config_of(places, strong__train__param_dtype="bfloat16")
    result = run(config, tmp_path)
    folder = tmp_path / "phases" / phase_of(result, "ceiling")
    assert {str(x.dtype) for x in jax.tree.leaves(models.load(folder)[1])} == {"bfloat16"}
    documents = resolve(validate(config)).roles["strong"].splits["test"]
    np.testing.assert_allclose(predicted(folder, documents), recorded(folder, documents), atol=1e-5)
