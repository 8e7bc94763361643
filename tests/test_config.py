"""Configs: defaults, inheritance, and one clear line for every kind of bad value."""

import pytest

from w2s_jax import config as config_lib
from w2s_jax.config.validation import validate
from w2s_jax.core import errors


def with_changes(**changes):
    config = config_lib.default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def message(config):
    with pytest.raises(errors.InputError) as caught:
        validate(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_valid_and_locked():
    config = config_lib.default_config()
    settings = validate(config)
    assert [loss.label for loss in settings.losses] == ["xent", "confidence"]
    assert settings.mesh.data == -1
    with pytest.raises(AttributeError):
        config.train.batchsize = 3


def test_roles_inherit_what_they_leave_open():
    settings = validate(
        with_changes(train__batch_size=16, weak__train__learning_rate=0.5, pretrain__steps=7)
    )
    assert (settings.weak.train.batch_size, settings.strong.train.batch_size) == (16, 16)
    assert settings.weak.train.learning_rate == 0.5
    assert settings.strong.train.learning_rate == config_lib.TrainSettings().learning_rate
    assert settings.weak.pretrain.steps == settings.strong.pretrain.steps == 7


def test_a_roles_own_epochs_outrank_inherited_steps():
    settings = validate(with_changes(train__steps=7, weak__train__epochs=3.0))
    assert settings.weak.train.steps is None and settings.weak.train.epochs == 3.0
    assert settings.strong.train.steps == 7


@pytest.mark.parametrize("name", ["paper", "released"])
def test_each_protocol_sets_its_switches_and_each_switch_can_be_set(name):
    plain = validate(with_changes(protocol__name=name)).protocol
    for switch, value in config_lib.PROTOCOLS[name].items():
        assert getattr(plain, switch) == value
    other = "released" if name == "paper" else "paper"
    for switch, value in config_lib.PROTOCOLS[other].items():
        changed = validate(
            with_changes(**{"protocol__name": name, f"protocol__{switch}": value})
        ).protocol
        assert getattr(changed, switch) == value != getattr(plain, switch)


@pytest.mark.parametrize(
    "changes,parts",
    [
        ({"train__adapt": "lorra"}, ["train.adapt", "'lorra'", "'lora'"]),
        ({"pretrain__adapt": "lora"}, ["pretrain.adapt", "'lora'", "'full'"]),
        ({"strong__train__last_layers": 0}, ["strong.train.last_layers", "0", "at least 1"]),
        ({"strong__read_out": "median"}, ["strong.read_out", "'median'", "mean"]),
        ({"lora__rank": 0}, ["lora.rank", "0", "at least 1"]),
        ({"lora__alpha": 0.0}, ["lora.alpha", "0.0", "above 0"]),
        ({"train__param_dtype": "fp16"}, ["train.param_dtype", "'fp16'", "bfloat16"]),
        ({"losses": ("xnet",)}, ["losses", "'xnet'", "'xent'"]),
        ({"losses": ()}, ["losses", "empty"]),
        ({"losses": ("xent", "xent")}, ["losses", "twice"]),
        ({"train__optimizer": "adm"}, ["train.optimizer", "'adm'", "'adam'"]),
        ({"train__schedule": "cosin"}, ["train.schedule", "'cosin'", "'cosine'"]),
        ({"train__compute_dtype": "bf16"}, ["train.compute_dtype", "'bf16'", "bfloat16"]),
        (
            {"train__microbatch_size": 12},
            ["microbatch_size", "12", "batch_size=32", "nearest", "8"],
        ),
        ({"train__learning_rate": 0.0}, ["train.learning_rate", "0.0", "above 0"]),
        ({"train__learning_rate": float("nan")}, ["train.learning_rate", "nan"]),
        ({"train__batch_size": 0}, ["train.batch_size", "0", "at least 1"]),
        ({"train__weight_decay": 0.1}, ["weight_decay", "0.1", "adamw"]),
        ({"train__dropout": 1.0}, ["train.dropout", "1.0", "at least 0 and below 1"]),
        ({"train__dropout": float("nan")}, ["train.dropout", "nan"]),
        ({"strong__train__ema": -0.1}, ["strong.train.ema", "-0.1", "at least 0"]),
        ({"train__label_smoothing": 1.0}, ["train.label_smoothing", "1.0", "below 1"]),
        ({"pretrain__label_smoothing": 0.1}, ["pretrain.label_smoothing", "0.1", "allowed: 0"]),
        ({"probe__dropout": 0.1}, ["weak.probe.dropout", "0.1", "allowed: 0"]),
        ({"pretrain__head_bias": True}, ["pretrain.head_bias", "True", "allowed: False"]),
        (
            {"train__adapt": "probe", "train__head_bias": True},
            ["weak.train.head_bias", "allowed: False", "weak.probe"],
        ),
        (
            {"train__adapt": "probe_then_full", "strong__probe__head_bias": True},
            ["strong.train.head_bias", "False", "allowed", "True", "strong.probe"],
        ),
        (
            {"train__cosine_steps": 5, "train__schedule": "linear"},
            ["train.cosine_steps", "5", "'linear'", "'cosine'"],
        ),
        (
            {"strong__train__adapt": "probe", "strong__train__ema": 0.9},
            ["strong.train.ema", "0.9", "strong.probe"],
        ),
        (
            {"strong__train__adapt": "probe", "strong__train__dropout": 0.1},
            ["strong.train.dropout", "0.1", "allowed: 0"],
        ),
        ({"protocol__name": "papers"}, ["protocol.name", "'papers'", "'paper'"]),
        ({"protocol__head_init": "zero"}, ["protocol.head_init", "'zero'", "'zeros'"]),
        ({"task__overlong": "cut"}, ["task.overlong", "'cut'", "truncate"]),
        ({"task__train_docs": -5}, ["task.train_docs", "-5", "at least 2"]),
        ({"loss__confidence__alpha_max": 1.5}, ["loss.confidence.alpha_max", "1.5", "from 0 to 1"]),
        ({"loss__confidence__threshold": "median"}, ["threshold", "'median'", "half"]),
        ({"seed": -1}, ["seed", "-1", "from 0"]),
        ({"pretrain__seed": 2**32}, ["pretrain.seed", "4294967296", "to 4294967295"]),
        ({"task__test_docs": 1}, ["task.test_docs", "1", "at least 2"]),
        ({"train__beta1": 1.0}, ["train.beta1", "1.0"]),
        ({"mesh__data": 0}, ["mesh.data", "0", "-1"]),
        ({"mesh__population": 0}, ["mesh.population", "0", "at least 1, or -1"]),
        ({"log__every": 0}, ["log.every", "0", "at least 1"]),
    ],
)
def test_a_bad_value_is_one_line_with_field_value_and_remedy(changes, parts):
    text = message(with_changes(**changes))
    for part in parts:
        assert part in text, text


def test_pretraining_and_probes_take_what_means_something_to_them():
    settings = validate(
        with_changes(
            pretrain__dropout=0.1, pretrain__ema=0.9, probe__ema=0.9, probe__label_smoothing=0.1
        )
    )
    assert (settings.weak.pretrain.dropout, settings.strong.probe.ema) == (0.1, 0.9)
    assert settings.weak.probe.label_smoothing == 0.1 and settings.weak.train.ema == 0.0


def test_fields_that_a_recipe_adds_or_leaves_out_are_named():
    config = config_lib.default_config()
    with config.unlocked():
        config.train.learning_rat = 3.0
    text = message(config)
    assert "'train.learning_rat'" in text and "did you mean 'train.learning_rate'" in text
    config = config_lib.default_config()
    with config.unlocked():
        del config.task.name
    assert "task.name: missing" in message(config)


def test_wrong_types_in_a_hand_made_config_are_named():
    config = config_lib.default_config().copy_and_resolve_references()
    with config.ignore_type():
        config.train.batch_size = "32"
    assert "train.batch_size: '32' is of type str; allowed: int" in message(config)
    assert "expected an ml_collections.ConfigDict" in message({"seed": 0})


def test_a_loss_may_stand_under_any_label_with_its_own_options():
    config = config_lib.default_config()
    config_lib.add_loss(config, "bold", "confidence", alpha_max=0.75)
    loss = validate(config).losses[-1]
    assert (loss.label, loss.kind) == ("bold", "confidence")
    assert dict(loss.options) == {"alpha_max": 0.75, "warmup_fraction": 0.2, "threshold": "half"}
    config_lib.add_loss(config, "odd", "confidence", alpha=0.75)
    assert "loss.odd: unknown value 'alpha' (did you mean 'alpha_max'?)" in message(config)
    with pytest.raises(errors.InputError, match=r"loss\.x\.kind.*'confidense'.*'confidence'"):
        config_lib.add_loss(config, "x", "confidense")


def test_a_loss_entry_of_a_wrong_shape_or_type_is_named():
    config = config_lib.default_config()
    config_lib.add_loss(config, "odd", "confidence", alpha_max="0.7")
    assert "loss.odd.alpha_max: '0.7' is of type str; allowed: float" in message(config)
    config = config_lib.default_config()
    with config.unlocked():
        config.loss.foo = 3
    assert "loss.foo: 3 has no options" in message(config)


def test_losses_may_be_given_as_one_comma_separated_string():
    settings = validate(with_changes(losses=("xent,logconf",)))
    assert [loss.label for loss in settings.losses] == ["xent", "logconf"]
