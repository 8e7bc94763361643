"""Runs with pretrained models, and with a part of a model trained."""

import json

import jax
import numpy as np
import pytest
from checkpoints import tiny
from rich.console import Console

from w2s_jax import artifacts, execute, models, sharding, testing
from w2s_jax.artifacts import PhaseFolder
from w2s_jax.inference import Predictor
from w2s_jax.resolve import resolve
from w2s_jax.validation import validate

QUIET = Console(quiet=True)
WORDS = 96  # ids of the words of the tiny task: a vocabulary that SIZES below covers


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


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "bert"))
@pytest.mark.parametrize("adapt", ADAPTS)
def test_a_run_trains_what_it_should_and_its_models_load(tmp_path, places, model_type, adapt):
    if model_type != "llama" and adapt in ("probe_then_full", "last_layers"):
        pytest.skip("as with the others")
    config = config_of(places, model_type, strong__train__adapt=adapt, **ADAPTS[adapt])
    result = run(config, tmp_path)
    assert result["ceiling"]["model"] == model_type and result["weak"]["model"] == "gpt-d8"
    data = resolve(validate(config)).roles
    assert data["weak"].tokenizer.name == "bytes" != data["strong"].tokenizer.name
    assert (
        data["weak"].splits["test"].ids_N.tolist() == data["strong"].splits["test"].ids_N.tolist()
    )
    documents = data["strong"].splits["test"]
    for kind in ("student", "ceiling"):
        folder = tmp_path / "phases" / phase_of(result, kind)
        np.testing.assert_allclose(
            predicted(folder, documents), recorded(folder, documents), atol=1e-5
        )
    base, params = (
        dict(models.load_with_head(place)[1]) for place in (places[1][model_type], folder)
    )
    moved = {
        jax.tree_util.keystr(path): not np.array_equal(x, y)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(base["backbone"]),
            jax.tree.leaves(params["backbone"]),
            strict=True,
        )
    }
    changed = {path for path, differs in moved.items() if differs}
    expected = {
        "full": lambda path: "unembedding" not in path and "pooler" not in path,
        "probe_then_full": lambda path: "unembedding" not in path,
        "lora": lambda path: "attention" in path and "kernel" in path and "norm" not in path,
        "last_layers": lambda path: "blocks" in path or "final_norm" in path,
        "probe": lambda path: False,
    }[adapt]
    # (A key's bias moves no attention, and has no gradient.)
    unsure = {path for path in moved if "key" in path and "bias" in path}
    assert changed - unsure == {path for path in moved if expected(path)} - unsure
    if adapt == "last_layers":
        first = jax.tree.map(
            lambda x, y: np.array_equal(x[:-1], y[:-1]),
            base["backbone"]["blocks"],
            params["backbone"]["blocks"],
        )
        assert all(jax.tree.leaves(first))
