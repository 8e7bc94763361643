"""The recipe of the SmolLM2 ladder, without the weights."""

from pathlib import Path

import pytest

from w2s_jax.config import recipes, validation
from w2s_jax.models.locations import split_layers

RECIPE = str(Path(__file__).parents[1] / "configs" / "smollm2.py")


def settings_of(choice):
    return validation.validate(recipes.load_config(f"{RECIPE}:{choice}", []))


@pytest.mark.parametrize("adapt", ["full", "last_layers", "lora", "probe"])
def test_rungs_are_the_first_layers_of_one_checkpoint(adapt):
    found = settings_of(f"imdb,4,30,{adapt},7")
    assert (found.seed, found.task.split_seed, found.task.name) == (7, 7, "imdb")
    assert (found.task.train_docs, found.task.test_docs, found.task.max_length) == (2000, 1000, 128)
    model, layers = split_layers(found.weak.model)
    assert layers == 4 and found.strong.model == model
    assert found.weak.train.adapt == found.strong.train.adapt == adapt


def test_a_small_model_is_trained_whole_on_the_pieces_of_minilm():
    found = settings_of("sst2,gpt-d16,minilm,probe,0")
    assert found.weak.model == "gpt-d16" and found.weak.train.adapt == "full"
    assert found.weak.tokenizer == found.strong.model and found.strong.train.adapt == "probe"


def test_unknown_rungs_are_refused():
    with pytest.raises(Exception, match="'5' is not a rung; allowed: gpt-d16, minilm, 4, 10"):
        settings_of("sst2,5,30,probe,0")
