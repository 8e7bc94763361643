"""Templates in a run: what fingerprints know of them, and what is refused before any work."""

import json

import pytest

from w2s_jax import testing
from w2s_jax.config.validation import validate
from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenizers import ByteTokenizer
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

BYTES = ByteTokenizer()
GOOD = {"text": "{text}\nGood?", "classes": ["no", "yes"]}
TONE = {"text": "{text}\nTone:", "classes": ["bad", "fine"]}
PROMPTED = {"labels zero_shot", "labels few_shot_truth", "labels few_shot_weak"}
SEARCHED = "labels contrast_consistent_search"


@pytest.fixture
def data_dir(tmp_path):
    return testing.write_tiny_task(tmp_path)


def write(data_dir, **templates):
    path = data_dir / "tiny" / "templates.json"
    path.unlink(missing_ok=True)
    if templates:
        path.write_text(json.dumps(templates))


def config_of(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    config.losses = ("xent",)
    config.method.name = "prompting,contrast_consistent_search"
    # The positions of models with bare documents must not depend on the documents.
    config.task.max_length = 80
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def phases(data_dir, **changes):
    found = plan(resolve(validate(config_of(data_dir, **changes)))).phases
    return {phase.title: phase for phase in found}


def names(data_dir, **changes):
    return {title: phase.name for title, phase in phases(data_dir, **changes).items()}


def different(before, after):
    assert before.keys() == after.keys()
    return {title for title in before if before[title] != after[title]}


def test_only_methods_that_average_know_the_templates_of_a_task(data_dir):
    bare = names(data_dir)
    write(data_dir, good=GOOD, tone=TONE)
    both = names(data_dir)
    assert different(bare, both) == PROMPTED | {SEARCHED}
    # Another wording, other words, another template: in all three cases just these.
    for templates in (
        {"good": GOOD, "tone": TONE | {"text": "{text}\nThe tone:"}},
        {"good": GOOD, "tone": TONE | {"classes": ["bad", "good"]}},
        {"good": GOOD},
    ):
        write(data_dir, **templates)
        assert different(both, names(data_dir)) == PROMPTED | {SEARCHED}


def test_a_method_can_do_without(data_dir):
    bare = names(data_dir)
    write(data_dir, good=GOOD)
    off = {"method__prompting__templates": "task"}
    assert different(bare, names(data_dir, **off)) == {SEARCHED}
    off["method__contrast_consistent_search__templates"] = "task"
    assert names(data_dir, **off) == bare
    # The spec of a phase without templates does not mention them.
    spec = phases(data_dir, **off)["labels zero_shot"].spec
    assert spec["options"] == {"shots": 0}
    assert not [name for name in spec["data"] if name.startswith("template")]


def test_the_template_of_a_run_is_read_by_all_models(data_dir):
    write(data_dir, good=GOOD, tone=TONE)
    off = {
        "method__prompting__templates": "task",
        "method__contrast_consistent_search__templates": "task",
    }
    bare, good = names(data_dir, **off), names(data_dir, task__template="good", **off)
    pretrained = {title for title in bare if title.startswith("pretrain")}
    assert different(bare, good) == bare.keys() - pretrained
    tone = names(data_dir, task__template="tone", **off)
    assert different(good, tone) == bare.keys() - pretrained
    # With 'all', methods average as they do without `task.template`, with other weak labels.
    every = phases(data_dir, task__template="good")
    assert every["labels zero_shot"].spec["options"]["templates"] == ["good", "tone"]
    # Another name of the template is no other template to what is trained.
    write(data_dir, other=GOOD)
    renamed = names(data_dir, task__template="other", **off)
    assert different(good, renamed) == PROMPTED | {SEARCHED}


def test_documents_keep_their_ids_and_the_head_knows_the_words(data_dir):
    bare = resolve(validate(config_of(data_dir))).roles["strong"]
    write(data_dir, good=GOOD)
    inside = resolve(validate(config_of(data_dir, task__template="good"))).roles["strong"]
    for split, documents in bare.splits.items():
        assert (documents.ids_N == inside.splits[split].ids_N).all()
        if split != "pretrain":
            assert documents.digest() != inside.splits[split].digest()
            text = BYTES.decode(inside.splits[split].document(0))
            assert text == BYTES.decode(documents.document(0))[:-5] + "\nGood? [EOS]"
    assert bare.label_tokens == BYTES.label_tokens
    assert inside.label_tokens == (3 + ord("n"), 3 + ord("y"))
    assert inside.head_init == "unembedding"
    (prompts,) = inside.prompts["good"]
    solved = tuple(tuple(3 + byte for byte in word) for word in (b"no\n\n", b"yes\n\n"))
    assert prompts.answers == solved and not prompts.swapped
    assert prompts.label_tokens == inside.label_tokens


def test_words_that_begin_alike(data_dir):
    write(data_dir, alike={"text": "{text}:", "classes": ["no", "none"]})
    with pytest.raises(InputError, match=r"'prompting' needs a token for each class; .* 'alike'"):
        plan(resolve(validate(config_of(data_dir))))
    found = resolve(validate(config_of(data_dir, method__name="naive", task__template="alike")))
    assert found.roles["weak"].head_init == "zeros" and found.roles["weak"].label_tokens == ()
    note = "words of the template begin with the same token, so that none stands for a class"
    assert any(note in line for line in found.notes)


def test_texts_are_cut_to_fit_and_a_note_says_so(data_dir):
    long = "{text}\nIs this a good film, or a bad one, in the opinion of its critic?\n:"
    write(data_dir, long={"text": long, "classes": ["no", "yes"]})
    found = resolve(validate(config_of(data_dir)))
    (line,) = [line for line in found.notes if line.startswith("template 'long'")]
    # A model with learned positions keeps one for the token of a label.
    assert "cut to fit within 79 tokens" in line and "63 of 64 of test" in line
    (prompts,) = found.roles["strong"].prompts["long"]
    test = prompts.splits["test"]
    assert test.longest == 79
    assert all(BYTES.decode(test.document(n)).endswith(f"{long[6:]} [EOS]") for n in range(64))
    with pytest.raises(InputError) as caught:
        resolve(validate(config_of(data_dir, task__max_length=60)))
    message = str(caught.value)
    assert "template 'long' of task 'tiny' leaves no room for a text within 59 tokens" in message
    assert "method.prompting.templates='task'" in message
    least = int(message.split("at least ")[1].split(",")[0])
    resolve(validate(config_of(data_dir, task__max_length=least)))
    with pytest.raises(InputError, match="leaves no room"):
        resolve(validate(config_of(data_dir, task__max_length=least - 1)))


def test_unknown_templates_are_refused(data_dir):
    with pytest.raises(InputError, match="'good', but task 'tiny' has no templates"):
        resolve(validate(config_of(data_dir, task__template="good")))
    write(data_dir, good=GOOD, tone=TONE)
    with pytest.raises(InputError, match=r"unknown value 'god' \(did you mean 'good'\?\); .*tone"):
        resolve(validate(config_of(data_dir, task__template="god")))
    with pytest.raises(InputError, match="templates: unknown value 'al'"):
        validate(config_of(data_dir, method__prompting__templates="al"))
