"""Adapters loaded by PEFT in PyTorch, for every family (needs the `torch` extra)."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import ENCODERS, SIZES, TINY, one

from w2s_jax import models
from w2s_jax.models import heads, importing, lora

torch = pytest.importorskip("torch")
pytest.importorskip("peft")


def saved(model_type, folder):
    """Save a random model of transformers."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | (TINY | ENCODERS)[model_type])
    auto = transformers.AutoModel if model_type in ENCODERS else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def adapted(found, targets):
    """Return an imported model with nonzero adapters of rank 3."""
    config = found.config.with_adapters(3, 5.0, targets)
    params = lora.add(config, found.params, 0, one())
    draw = np.random.default_rng(2)

    def filled(path, x):
        if path[-1].key != "lora_b":
            return x
        return jnp.asarray(0.2 * draw.standard_normal(x.shape), jnp.float32)

    return config, jax.tree_util.tree_map_with_path(filled, params)


def peft_logits(auto, base, folder, tokens, **kwargs):
    """(with adapters, without) of transformers' model with PEFT's adapters around it."""
    import peft

    model = auto.from_pretrained(base, attn_implementation="eager", dtype="float32", **kwargs)
    with warnings.catch_warnings():
        # A warning would mean a missing or unused tensor, or another layout.
        warnings.simplefilter("error", UserWarning)
        wrapped = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.no_grad():
        ours = wrapped(torch.tensor(tokens))[0].numpy()
        with wrapped.disable_adapter():
            return ours, wrapped(torch.tensor(tokens))[0].numpy()


@pytest.mark.parametrize(
    "model_type,targets,classes",
    [
        *((model_type, ("*",), 2) for model_type in TINY),
        # Only some parts of a fused projection, or one.
        ("gpt2", ("attention.query", "attention.value", "mlp.down"), 1),
        ("gpt_neox", ("attention.value", "attention.query"), 1),
        ("gpt_neox", ("attention.key",), 2),
        ("llama", ("mlp.*", "attention.out"), 1),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_peft_gives_our_logits(tmp_path, model_type, targets, classes):
    """For the language model, and for the sequence classifier with our head."""
    import transformers

    base = saved(model_type, tmp_path / "base")
    found = importing.import_huggingface(base, one())
    config, params = adapted(found, targets)
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, classes))}
    lora.save_peft(config, params, tmp_path / "plain", base_model=str(base))
    lora.save_peft(config, params, tmp_path / "headed", base_model=str(base), head=head)
    record = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    assert record["base_model_name_or_path"] == str(base)
    tokens = np.random.default_rng(1).integers(3, 64, (3, 12))

    @jax.jit
    def run(params, head):
        hidden = models.forward(config, params, tokens, scan=True)
        of_class = jnp.einsum("bd,dc->bc", hidden[:, -1], head["kernel"])
        return heads.language_model_logits(config, params, hidden), of_class

    logits, class_logits = run(params, head)
    auto = transformers.AutoModelForCausalLM
    theirs, without = peft_logits(auto, base, tmp_path / "plain", tokens)
    assert np.abs(theirs - without).max() > 0.05
    np.testing.assert_allclose(logits, theirs, atol=1e-5 * np.abs(theirs).max())
    auto = transformers.AutoModelForSequenceClassification
    theirs, _ = peft_logits(auto, base, tmp_path / "headed", tokens, num_labels=classes)
    assert theirs.shape == (3, classes)
    np.testing.assert_allclose(class_logits, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("model_type", ENCODERS)
def test_peft_gives_an_encoders_hidden_states_and_class_logits(tmp_path, model_type):
    import transformers

    base = saved(model_type, tmp_path / "base")
    found = importing.import_huggingface(base, one())
    found = dataclasses.replace(found, config=dataclasses.replace(found.config, read_out="pooler"))
    config, params = adapted(found, ("attention.*", "mlp.down"))
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 2)), "bias": jnp.ones(2)}
    lora.save_peft(config, params, tmp_path / "plain", base_model=str(base))
    lora.save_peft(config, params, tmp_path / "headed", base_model=str(base), head=head)
    tokens = np.random.default_rng(1).integers(3, 64, (3, 12))

    @jax.jit
    def run(params, head):
        hidden = models.forward(config, params, tokens, scan=True)
        ends = np.arange(11, 36, 12)[:, None]
        seen = heads.read_out(config, params, hidden, np.ones((3, 12)), ends)
        return hidden, heads.class_logits(head, seen)

    hidden, class_logits = run(params, head)
    theirs, without = peft_logits(transformers.AutoModel, base, tmp_path / "plain", tokens)
    assert np.abs(theirs - without).max() > 0.05
    np.testing.assert_allclose(hidden, theirs, atol=1e-5 * np.abs(theirs).max())
    auto = transformers.AutoModelForSequenceClassification
    theirs, _ = peft_logits(auto, base, tmp_path / "headed", tokens, num_labels=2)
    np.testing.assert_allclose(class_logits, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("gpt2", dict(target_modules=["c_attn", "c_proj"])),
        ("llama", dict(target_modules="all-linear", use_rslora=True)),
        ("llama", dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
        (
            "gpt_neox",
            dict(
                target_modules=["query_key_value"],
                alpha_pattern={"layers.1.attention.query_key_value": 40},
            ),
        ),
        ("qwen2", dict(target_modules=["q_proj"], bias="all")),
        ("phi", dict(target_modules=["lm_head", "fc1"])),
        ("gemma", dict(target_modules=["v_proj"], task_type="SEQ_CLS")),
        ("bert", dict(target_modules=["query", "dense"], task_type="SEQ_CLS")),
        ("roberta", dict(target_modules=["query"], task_type="SEQ_CLS")),
    ],
)
def test_adapters_that_peft_saved_give_its_logits_here(tmp_path, model_type, options):
    import peft
    import transformers

    classifies = "task_type" in options
    auto = transformers.AutoModelForCausalLM
    if classifies:
        auto = transformers.AutoModelForSequenceClassification
    base = saved(model_type, tmp_path / "base")
    model = peft.get_peft_model(
        auto.from_pretrained(base, dtype="float32"), peft.LoraConfig(r=3, lora_alpha=5, **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "adapters")
        tokens = np.random.default_rng(1).integers(3, 64, (2, 9))
        theirs = model.eval()(torch.tensor(tokens)).logits.numpy()
    config, params = models.load_with_head(tmp_path / "adapters", one())
    hidden = models.forward(config, params["backbone"], tokens)
    if classifies:
        ends = jnp.array([[8], [17]])
        read = heads.read_out(config, params["backbone"], hidden, jnp.ones((2, 9), int), ends)
        ours = heads.class_logits(params["head"], read)
    else:
        ours = heads.language_model_logits(config, params["backbone"], hidden)
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4)
