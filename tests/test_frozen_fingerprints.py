"""Fingerprints must not change, because stored results are found by them.

They must not depend on machines, versions of Python or libraries, or where code is. All plans here
use the embedded digits, the files of the tiny task, or the models of frozen_models.py.
"""

import json

import pytest
from frozen_files import check, frozen
from frozen_models import write_model

from w2s_jax import testing
from w2s_jax.config import default_config

KINDS = {"pretrain", "features", "probe", "weak", "student", "ceiling", "labels", "transfer"}
LOSSES = (
    "xent", "confidence", "logconf", "product", "entropy", "l2_confidence", "buffered_confidence",
    "soft_buffered_confidence", "window", "kl", "reverse_kl", "reverse_xent", "cace",
    "adaptive_confidence", "generalized_xent",
)  # fmt: skip
METHODS = (
    "naive", "bootstrapping", "strong_to_strong", "generative", "bagging", "boosting",
    "confidence_threshold", "probe_filter", "probe_relabel", "trust_filter", "early_stopping",
    "saliency", "prompting", "contrast_consistent_search", "em_posterior", "synthetic",
    "controls", "imitation",
)  # fmt: skip


def phases_of(config):
    """Return {title: names of the phases with it}; the only internal functions used here."""
    from w2s_jax.config.validation import validate
    from w2s_jax.planning.plan import plan
    from w2s_jax.planning.resolve import resolve

    found = {}
    for phase in plan(resolve(validate(config))).phases:
        found.setdefault(phase.title, []).append(phase.name)
    return {title: " ".join(names) for title, names in found.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def changed(config, **changes):
    """Set fields of a config; `__` in a name means a dot."""
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def digits(**changes):
    """Return the quickstart's config: scikit-learn's digits."""
    config = default_config()
    config.task.name = "digits_even"
    config.strong.pretrain.source = "task"
    config.strong.pretrain.steps = 1000
    config.train.steps = 40
    return changed(config, **changes)


def tiny(data_dir, **changes):
    return changed(testing.tiny_config(data_dir), **changes)


@pytest.mark.parametrize("method", METHODS)
def test_each_method(data_dir, method):
    config = tiny(data_dir, losses=("xent",), method__name=method)
    config.method.prompting.shots = 1
    config.probe.steps, config.probe.batch_size = 20, 16
    check("fingerprints", {f"method {method}": phases_of(config)})


@pytest.mark.parametrize("losses", [LOSSES], ids=["all"])
def test_each_loss(data_dir, losses):
    found = phases_of(tiny(data_dir, losses=losses))
    assert {f"student {kind}" for kind in losses} <= found.keys()
    check("fingerprints", {"losses": found})


def test_losses_with_options(data_dir):
    config = tiny(data_dir)
    config.losses = (
        "xent",
        {"kind": "confidence", "alpha_max": 0.75, "threshold": "prior"},
        {"kind": "window", "radius": 0.25, "label": "narrow"},
        {"kind": "buffered_confidence", "buffer_size": 64, "balance_batch": True},
    )
    from w2s_jax.config import with_labels

    check("fingerprints", {"losses with options": phases_of(with_labels(config))})


CHANGES = {
    "as it is": {},
    "other seeds": dict(seed=3, pretrain__seed=4, task__split_seed=5),
    "released protocol": dict(protocol__name="released"),
    "balanced otherwise": dict(protocol__balance=False, protocol__early_stopping="ground_truth"),
    "lora": dict(strong__train__adapt="lora", strong__lora__rank=2),
    "last layers": dict(strong__train__adapt="last_layers"),
    "probe": dict(strong__train__adapt="probe", probe__steps=5, probe__batch_size=16),
    "probe then full": dict(
        weak__train__adapt="probe_then_full", strong__train__adapt="probe_then_full",
        probe__steps=5, probe__batch_size=16,
    ),
    "read out by the mean": dict(strong__read_out="mean"),
    "optimiser": dict(
        train__optimizer="adamw", train__schedule="linear", train__warmup=0.1, train__beta1=0.8,
        train__beta2=0.98, train__weight_decay=0.01, train__clip_norm=1.0,
    ),
    "adafactor": dict(train__optimizer="adafactor", pretrain__optimizer="adafactor"),
    "bfloat16": dict(train__compute_dtype="bfloat16", strong__train__param_dtype="bfloat16"),
    "regularised": dict(train__dropout=0.1, train__ema=0.9, train__label_smoothing=0.1),
    "epochs": dict(train__steps=None, train__epochs=1.5, pretrain__steps=None),
    "no pretraining": dict(pretrain__source=None),
    "short texts": dict(task__max_length=20, task__overlong="drop"),
    "fewer documents": dict(task__train_docs=100, task__test_docs=32, task__validation_docs=16),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_section_of_a_config(data_dir, name):
    check("fingerprints", {f"tiny, {name}": phases_of(tiny(data_dir, **CHANGES[name]))})


@pytest.mark.parametrize("name,changes", [("digits", {}), ("digits, seed 1", {"seed": 1})])
def test_digits(name, changes):
    check("fingerprints", {name: phases_of(digits(**changes))})


def test_external_labels(data_dir, tmp_path):
    from w2s_jax.config.validation import validate
    from w2s_jax.planning.resolve import resolve

    config = tiny(data_dir)
    splits = resolve(validate(config)).roles["weak"].splits
    ids = [int(i) for name in ("slice2", "validation", "test") for i in splits[name].ids_N]
    rows = [json.dumps({"id": i, "p": (n % 8) / 8}) for n, i in enumerate(ids)]
    config.weak.labels = str(tmp_path / "judge.jsonl")
    (tmp_path / "judge.jsonl").write_text("\n".join(rows))
    check("fingerprints", {"labels from outside": phases_of(config)})


def test_other_test_sets(data_dir):
    (data_dir / "another").mkdir()
    rows = [json.dumps(row) + "\n" for row in testing.tiny_records(40, seed=5)]
    (data_dir / "another" / "test.jsonl").write_text("".join(rows))
    config = tiny(data_dir, task__test_tasks=("another",), strong__train__adapt="probe")
    config.probe.steps, config.probe.batch_size = 5, 16
    check("fingerprints", {"another test set": phases_of(config)})


@pytest.mark.parametrize(
    "model_type,adapt", [("gpt2", "full"), ("gpt2", "lora"), ("llama", "full"), ("bert", "full")]
)
def test_a_pretrained_model(data_dir, tmp_path, model_type, adapt):
    config = tiny(data_dir, pretrain__source=None, strong__train__adapt=adapt)
    config.strong.model = str(write_model(model_type, tmp_path / model_type))
    config.strong.tokenizer = "bytes"
    check("fingerprints", {f"pretrained {model_type}, {adapt}": phases_of(config)})


def test_all_phase_kinds_are_frozen():
    names = [
        name
        for case in frozen("fingerprints").values()
        for names in case.values()
        for name in names.split()
    ]
    assert {name.partition("-")[0] for name in names} == KINDS
