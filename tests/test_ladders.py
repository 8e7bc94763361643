"""Known ladders: sizes against published parameter counts, names, and defaults."""

import dataclasses
import subprocess
import sys

import pytest

from w2s_jax.core import errors
from w2s_jax.models import ladders
from w2s_jax.models.families import FAMILIES

#: Published parameter counts (for tied models without a second copy of the embedding).
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-2-13b-hf": 13_015_864_320,
    "Llama-2-70b-hf": 68_976_648_192,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen1.5-0.5B": 463_987_712,
    "Qwen1.5-1.8B": 1_836_828_672,
    "Qwen1.5-4B": 3_950_369_280,
    "Qwen1.5-7B": 7_721_324_544,
    "Qwen1.5-14B": 14_167_290_880,
    "Qwen1.5-32B": 32_512_218_112,
    "Qwen1.5-72B": 72_287_920_128,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B-Base": 596_049_920,
    "Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen3-4B-Base": 4_022_468_096,
    "Qwen3-8B-Base": 8_190_735_360,
    "Qwen3-14B-Base": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
    "phi-1_5": 1_418_270_720,
    "phi-2": 2_779_683_840,
}
#: With the pooler.
ENCODERS = {
    "bert-base-uncased": 109_482_240,
    "bert-large-uncased": 335_141_888,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "all-MiniLM-L6-v2": 22_713_216,
    "all-MiniLM-L12-v2": 33_360_000,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_decoders_have_the_published_number_of_parameters(name):
    assert ladders.find(name).config().num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_published_number_of_parameters(name):
    config = ladders.find(name).config()
    assert dataclasses.replace(config, pooler=True).num_parameters() == ENCODERS[name]


def test_every_entry_is_a_model_of_its_family_and_ladders_are_sorted():
    for name, known in ladders.KNOWN.items():
        config = known.config()
        assert config.name == name == known.name
        assert (
            FAMILIES[config.family].to_hf(config)["model_type"] == known.huggingface["model_type"]
        )
    for ladder in {known.ladder for known in ladders.KNOWN.values()}:
        rungs = [k for k in ladders.KNOWN.values() if k.ladder == ladder]
        counts = [k.config().num_parameters() for k in rungs]
        assert counts == sorted(counts), ladder
    assert set(ladders.NOTES) <= {known.ladder for known in ladders.KNOWN.values()}


def test_fields_that_parameter_counts_cannot_show():
    """Windows, ranges and scales, which cost memory or FLOPs but have no parameters."""
    assert ladders.find("Mistral-7B-v0.1").config().window == 4096
    assert ladders.find("Mistral-7B-v0.3").config().window == 0
    assert ladders.find("Qwen2.5-7B").config().window == 0
    gemma = ladders.find("gemma-3-270m").config()
    assert (gemma.window, sum(gemma.local_layers), gemma.num_heads) == (512, 15, 4)
    assert ladders.find("gemma-2-27b").config().query_scalar == 144
    llama = ladders.find("Llama-3.2-1B").config()
    assert (llama.rope_factor, llama.head_dim, llama.tied_embeddings) == (32.0, 64, True)
    assert ladders.find("phi-2").config().rope_fraction == 0.4
    assert ladders.find("pythia-1b").config().head_dim == 256
    assert not ladders.find("pythia-1b").config().tied_embeddings


@pytest.mark.parametrize(
    "name,found",
    [
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("gpt2", "openai-community/gpt2"),
        ("GPT2-XL", "openai-community/gpt2-xl"),
        ("EleutherAI/pythia-70m@step3000", "EleutherAI/pythia-70m"),
        ("pythia-70m@step3000", "EleutherAI/pythia-70m"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("someone/gpt2", None),
        ("gpt", None),
        ("", None),
    ],
)
def test_models_are_found_by_id_alias_and_last_part(name, found):
    known = ladders.find(name)
    assert (known and known.name) == found


def test_a_last_part_that_two_models_share_finds_neither(monkeypatch):
    one = ladders.KNOWN["openai-community/gpt2"]
    twin = dataclasses.replace(one, name="elsewhere/gpt2")
    monkeypatch.setitem(ladders.KNOWN, twin.name, twin)
    assert ladders.find("gpt2") is None
    assert ladders.find("elsewhere/gpt2") is twin


@pytest.mark.parametrize(
    "name,adapt,rate",
    [
        ("gpt2", "full", 5e-5),
        ("gpt2-medium", "full", 5e-5),
        ("gpt2-large", "full", 1e-5),
        ("gpt2-xl@main", "full", 1e-5),
        ("gpt2-xl", "last_layers", 1e-5),
        ("Qwen2.5-0.5B", "full", 5e-5),
        ("Qwen3-0.6B-Base", "full", 1e-5),
        ("Qwen2.5-72B", "full", 1e-5),
        ("gpt2", "lora", 5e-4),
        ("gpt2-xl", "lora", 1e-4),
        ("gpt2", "probe", 1e-3),
        ("Qwen2.5-72B", "probe", 1e-3),
    ],
)
def test_default_learning_rates(name, adapt, rate):
    count = ladders.find(name).config().num_parameters()
    assert ladders.default_learning_rate(name, count, adapt=adapt) == rate


def test_defaults_of_models_that_are_not_known():
    rate = ladders.default_learning_rate
    assert rate("./mine", 499_999_999) == 5e-5 and rate("./mine", 500_000_000) == 1e-5
    assert rate("gpt-d64", 10, embedded=True) == 1e-3
    assert rate("gpt-d64", 10, embedded=True, adapt="lora") == 1e-2
    # A name in the released ladder takes precedence over the size.
    assert rate("gpt2-medium", 10**12) == 5e-5
    with pytest.raises(errors.InputError, match="'loar' .did you mean 'lora'.*last_layers"):
        rate("gpt2", 1, adapt="loar")
    assert ladders.default_param_dtype(4_999_999_999) == "float32"
    assert ladders.default_param_dtype(5_000_000_000) == "bfloat16"


def test_no_jax_is_imported():
    code = (
        "import sys\nfrom w2s_jax.models import budget, commands, ladders\n"
        "ladders.find('gpt2').config()\n"
        "heavy = {'jax', 'flax', 'transformers', 'torch', 'optax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
