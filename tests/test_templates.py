"""Templates: documents spelt out by hand, words for the classes, files, built-in wordings."""

import json

import numpy as np
import pytest
import tokenizers as tk

from w2s_jax.cli.main import main
from w2s_jax.core.errors import InputError
from w2s_jax.data import Task, Template, register_task
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.templated import class_tokens, separator, swapped, tokenize_inside
from w2s_jax.data.tokenize import tokenize
from w2s_jax.data.tokenizers import ByteTokenizer, load_tokenizer

BYTES = ByteTokenizer()
GOOD = Template("It: {text}\nGood?", ("no", "yes"))
WHICH = Template("A {text_a} B {text_b}:", ("A", "B"))


def texts_of(*texts):
    return [Document(id=10 + i, text=text, label=i % 2) for i, text in enumerate(texts)]


def pairs_of(*pairs):
    return [Document(id=10 + i, texts=pair, label=i % 2) for i, pair in enumerate(pairs)]


def inside(documents, template, tokenizer=BYTES, max_length=None, overlong="truncate", **options):
    return tokenize_inside(
        documents, tokenizer, template=template, max_length=max_length, overlong=overlong, **options
    )


def spelt(tokenized):
    """Every document as text, with < and > for its beginning and end."""
    marks = {1: b"<", 2: b">"}
    return [
        b"".join(marks.get(t) or bytes([t - 3]) for t in tokenized.document(n).tolist()).decode()
        for n in range(len(tokenized))
    ]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer with tokens for 'ab' and ' y', and single letters otherwise; it adds <s>."""
    vocab = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, " ": 5, "y": 6, " y": 7, "n": 8, ":": 9}
    merges = [("a", "b"), (" ", "y")]
    backend = tk.Tokenizer(tk.models.BPE(vocab=vocab, merges=merges))
    backend.decoder = tk.decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    backend.save(str(path))
    return load_tokenizer(str(path))


# --- documents ------------------------------------------------------------------------------------


def test_a_text_is_read_inside_the_template():
    found, counts = inside(texts_of("fine", "{text} {x}"), GOOD)
    # The space that both words begin with ends the prompt; braces of a text are text.
    assert spelt(found) == ["<It: fine\nGood? >", "<It: {text} {x}\nGood? >"]
    assert (counts["documents"], counts["truncated"], counts["tokens"]) == (2, 0, 17 + 23)
    without = Template("It: {text}\nGood?")
    assert spelt(inside(texts_of("fine"), without)[0]) == ["<It: fine\nGood?>"]


def test_a_pair_becomes_one_text_in_the_order_of_the_places():
    documents = pairs_of(("one", "two"))
    assert spelt(inside(documents, WHICH)[0]) == ["<A one B two: >"]
    turned = Template("B {text_b} A {text_a}\n", ("A", "B"))
    assert spelt(inside(documents, turned)[0]) == ["<B two A one\n>"]


def test_ids_and_labels_are_those_of_the_bare_documents():
    documents = [
        Document(id=7, text="a", label=1, soft_label=0.25),
        Document(id=2**63, text="bb", label=0),
        Document(id=9, text="c"),
    ]
    bare, _ = tokenize(documents, BYTES, max_length=None, overlong="error")
    found, _ = inside(documents, GOOD)
    for name in ("ids_N", "labels_N", "soft_N"):
        np.testing.assert_array_equal(getattr(found, name), getattr(bare, name))
    assert found.ids_N.dtype == np.uint64 and found.tokens_T.dtype == np.int32
    assert found.num_texts == 1 and found.digest() != bare.digest()
    many = [Document(id=1, text="a", label=2), Document(id=2, text="b", soft_label=(0, 0.5, 0.5))]
    found, _ = inside(many, Template("{text}", ("x", "y", "z")), num_classes=3)
    np.testing.assert_array_equal(found.soft_NC, np.float32([[0, 0, 1], [0, 0.5, 0.5]]))


def test_nothing_shows_a_seam_unless_a_text_is_cut(letters):
    template = Template("b{text}b", ())
    # b + ab + ab, although the text ends in 'a'; cut, the words and the text stand alone.
    assert inside(texts_of("aba"), template, letters)[0].tokens_T.tolist() == [0, 3, 4, 4]
    found, counts = inside(texts_of("abab", "ababab"), template, letters, max_length=5)
    assert found.document(0).tolist() == [0, 3, 4, 4, 3]
    assert found.document(1).tolist() == [0, 3, 4, 4, 3] and counts["truncated"] == 1
    # The text loses a token, 'b' and the last 'a' stand apart.
    found, _ = inside(texts_of("ababa"), template, letters, max_length=4, truncate="start")
    assert found.tokens_T.tolist() == [0, 3, 2, 3]


def test_only_the_text_is_cut():
    documents = texts_of("a long review", "short")
    for side, kept in (("end", "a lon"), ("start", "eview")):
        found, counts = inside(documents, GOOD, max_length=18, truncate=side)
        assert spelt(found) == [f"<It: {kept}\nGood? >", "<It: short\nGood? >"]
        assert (counts["overlong"], counts["truncated"]) == (1, 1) and found.longest == 18
    # Never inside a character: three bytes of room hold one of two.
    found, _ = inside(texts_of("ééé"), GOOD, max_length=16)
    assert spelt(found) == ["<It: é\nGood? >"]


@pytest.mark.parametrize(
    ("pair", "kept"),
    [
        (("aaaaaa", "bbbbbb"), ("aaa", "bbbb")),  # seven tokens of room
        (("aa", "bbbbbb"), ("aa", "bbbbb")),
        (("aaaaaa", "b"), ("aaaaaa", "b")),
        (("aaaaaaaaa", "bb"), ("aaaaa", "bb")),
    ],
)
def test_two_texts_share_the_room(pair, kept):
    words = len("<A  B : >")
    found, _ = inside(pairs_of(pair), WHICH, max_length=words + 7)
    assert spelt(found) == [f"<A {kept[0]} B {kept[1]}: >"]


def test_long_documents_are_dropped_refused_or_leave_no_room():
    documents = texts_of("a long review", "short")
    found, counts = inside(documents, GOOD, max_length=18, overlong="drop")
    assert found.ids_N.tolist() == [11] and counts["dropped"] == 1
    with pytest.raises(InputError, match="1 of 2 documents have more than 18 tokens"):
        inside(documents, GOOD, max_length=18, overlong="error")
    with pytest.raises(InputError, match=r"max_length: 13; .* no room for a text; .* at least 14"):
        inside(documents, GOOD, max_length=13)
    assert spelt(inside(documents, GOOD, max_length=14)[0])[0] == "<It: a\nGood? >"


def test_a_text_that_is_empty_by_itself_is_empty():
    documents = texts_of("", "b")
    assert inside(documents, GOOD, empty="skip")[0].ids_N.tolist() == [11]
    with pytest.raises(InputError, match="has no tokens"):
        inside(documents, GOOD, empty="error")
    with pytest.raises(InputError, match="not of tokens"):
        inside([Document(id=1, tokens=(1, 2), label=0)], GOOD)


def test_swapped_pairs_have_the_other_label():
    given = [
        Document(id=1, texts=("a", "b"), label=1, soft_label=0.75),
        Document(id=2, texts=("c", "d"), soft_label=0.5),
    ]
    first, second = swapped(given)
    assert (first.id, first.texts, first.label, first.soft_label) == (1, ("b", "a"), 0, 0.25)
    assert (second.texts, second.label, second.soft_label) == (("d", "c"), None, 0.5)
    assert swapped(swapped(given)) == given


# --- words for the classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words", "lead", "tokens"),
    [
        ("{text}:", ("no", "yes"), " ", "ny"),
        ("{text}\n", ("no", "yes"), "", "ny"),
        ("{text}:", ("possible", "positive"), " pos", "si"),
        ("{text}:", ("bad", "good", "mixed"), " ", "bgm"),
        ("{text}:", ("no", "none"), "", ""),  # the first is the beginning of the second
        ("{text}:", ("sad", "so-so", "joy"), "", ""),
        ("{text}:", (), "", ""),
    ],
)
def test_a_class_is_told_by_the_first_token_in_which_words_differ(text, words, lead, tokens):
    found = class_tokens(Template(text, words), BYTES)
    assert found.lead == tuple(3 + ord(c) for c in lead)
    assert found.label_tokens == tuple(3 + ord(c) for c in tokens)


def test_words_are_tokenised_with_their_space(letters):
    found = class_tokens(Template("{text}:", ("n", "y")), letters)
    # ' ' 'n' and ' y': nothing in common.
    assert (found.lead, found.label_tokens, found.answers) == ((), (5, 7), ((5, 8), (7,)))
    assert separator(BYTES) == (13, 13)


# --- files ----------------------------------------------------------------------------------------


def folder(data_dir, templates, *, pairs=False, prompts=False, labels=(0, 1)):
    """Write the task 'mine' with templates, and return `data_dir` as text."""
    rows = [{"text": f"text {n}", "label": labels[n % len(labels)]} for n in range(12)]
    if pairs:
        rows = [{"text_a": f"a {n}", "text_b": f"b {n}", "label": n % 2} for n in range(12)]
    if prompts:
        rows = [{"prompt": f"what {n}", "target": "it"} for n in range(12)]
    place = data_dir / "mine"
    place.mkdir(exist_ok=True)
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = templates if isinstance(templates, str) else json.dumps(templates)
    (place / "templates.json").write_text(text)
    return str(data_dir)


def test_a_folder_has_templates_without_code(tmp_path):
    found = {
        "good": {"text": "{text}\nGood?", "classes": ["no", "yes"]},
        "bare": {"text": "{text}"},
    }
    loaded = load("mine", data_dir=folder(tmp_path, found))
    expected = {"good": Template("{text}\nGood?", ("no", "yes")), "bare": Template("{text}")}
    assert loaded.task.templates == expected and loaded.unused == ()
    assert [*loaded.documents] == ["train"]
    pair = {"which": {"text": "{text_b} or {text_a}?", "classes": ["a", "b"]}}
    loaded = load("mine", data_dir=folder(tmp_path, pair, pairs=True))
    assert loaded.task.templates["which"].order == (1, 0)
    words = {"mood": {"text": "{text}:", "classes": ["x", "y", "z"]}}
    loaded = load("mine", data_dir=folder(tmp_path, words, labels=("bad", "good", "odd")))
    assert loaded.task.num_classes == 3


def test_a_folder_adds_templates_to_a_built_in_task(tmp_path):
    own = {
        "tone": {"text": "{text} My own:", "classes": ["bad", "good"]},
        "new": {"text": "{text}"},
    }
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text(
        '{"sentence": "x", "label": 0}\n{"sentence": "y", "label": 1}\n'
    )
    (tmp_path / "sst2" / "templates.json").write_text(json.dumps(own))
    templates = load("sst2", data_dir=str(tmp_path)).task.templates
    assert [*templates] == ["opinion", "tone", "new"]
    assert templates["tone"].text == "{text} My own:"
    assert [*TASKS["sst2"].templates] == ["opinion", "tone"]


BAD = [
    ("{", "not valid JSON"),
    ([], "must be an object of templates by name"),
    ({"x": "{text}"}, "template 'x': '{text}'; must be"),
    ({"x": {"txt": ""}}, "unknown field 'txt' (did you mean 'text'?); allowed: text, classes"),
    ({"x": {"classes": ["a", "b"]}}, "field 'text' is missing"),
    ({"x": {"text": 3}}, "text: 3 is no text"),
    ({"x": {"text": "no place"}}, "has no place for the text; needed: {text}, once"),
    ({"x": {"text": "{text} {text}"}}, "has {text}, {text}; needed: {text}, once"),
    ({"x": {"text": "{text_a}{text_b}"}}, "has {text_a}, {text_b}; needed: {text}, once"),
    ({"x": {"text": "{text}", "classes": "ab"}}, "classes: 'ab' is no list of words"),
    ({"x": {"text": "{text}", "classes": ["a"]}}, "'a' is the only class"),
    ({"x": {"text": "{text}", "classes": ["a", "a"]}}, "'a' is listed 2 times"),
    ({"x": {"text": "{text}", "classes": ["a", " b"]}}, "have no spaces around them"),
    ({"x": {"text": "{text}", "classes": ["a", "b", "c"]}}, "3 words (a, b, c) for the 2 classes"),
    ({"x y": {"text": "{text}"}}, "allowed: a name of letters, digits"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        load("mine", data_dir=folder(tmp_path, content))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "mine" / "templates.json")) and words in message
    assert "\n" not in message


def test_templates_that_do_not_suit_a_task_are_refused(tmp_path):
    one = {"x": {"text": "{text}"}}
    with pytest.raises(InputError, match="needed: {text_a} and {text_b}, each once"):
        load("mine", data_dir=folder(tmp_path, one, pairs=True))
    with pytest.raises(InputError, match="x: task 'mine' asks for completions"):
        load("mine", data_dir=folder(tmp_path, one, prompts=True))
    three = {"x": {"text": "{text}", "classes": ["a", "b"]}}
    with pytest.raises(InputError, match=r"2 words \(a, b\) for the 3 classes .*: 0, 1, 2"):
        load("mine", data_dir=folder(tmp_path, three, labels=(0, 1, 2)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"templates": {"x": Template("{text")}}, "has no place for the text"),
        ({"templates": {"x": "{text}"}}, "is '{text}', not a Template"),
        ({"templates": [Template("{text}")]}, "not a dict of templates by name"),
        ({"templates": {"x": Template("{text}", ("a", "b", "c"))}}, "for the 2 classes"),
        ({"kind": "generation", "templates": {"x": Template("{text}")}}, "belongs to tasks of"),
    ],
)
def test_declared_templates_are_checked(changes, words):
    with pytest.raises(InputError) as caught:
        register_task(Task("made_up", "", "", expand=lambda record, where: [], **changes))
    assert words in str(caught.value) and "made_up" in str(caught.value)
    assert "made_up" not in TASKS


def test_prepared_data_keep_their_templates(tmp_path):
    (tmp_path / "in").mkdir()
    data_dir = folder(tmp_path / "in", {"x": {"text": "{text}"}})
    to = tmp_path / "out"
    assert main(["data", "prepare", "mine", f"--data_dir={data_dir}", f"--to={to}"]) == 0
    assert load("mine", data_dir=str(to)).task.templates == {"x": Template("{text}")}


# --- built-in tasks, and the command line ---------------------------------------------------------


def test_each_built_in_task_of_texts_and_classes_has_two_templates():
    for task in TASKS.values():
        if task.generates or task.token_space is not None:
            assert not task.templates
            continue
        assert len(task.templates) >= 2, task.name
        for template in task.templates.values():
            # With bytes, the hardest case, words differ as soon as their space is past.
            tokens = class_tokens(template, BYTES)
            assert len(set(tokens.label_tokens)) == task.num_classes
            assert len(tokens.lead) == 1
            texts = ("one", "two")[: task.num_texts]
            assert all(text in template.around(texts) for text in texts)


def test_the_command_line_names_templates_and_shows_documents_inside(tmp_path, capsys):
    data_dir = folder(tmp_path, {"good": {"text": "{text}\nGood?", "classes": ["no", "yes"]}})
    assert main(["data", "list"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("sst2"))
    assert "opinion, tone" in line
    assert main(["data", "list", "mine", f"--data_dir={data_dir}"]) == 0
    assert 'template good    "{text}\\nGood?" -> no | yes' in capsys.readouterr().out
    show = ["data", "show", "mine", f"--data_dir={data_dir}", "--n=1"]
    assert main([*show, "--template=good"]) == 0
    out = capsys.readouterr().out
    assert "[BOS]text " in out and "\nGood? [EOS]" in out
    assert main([*show, "--template=god"]) == 2
    assert "--template: unknown value 'god' (did you mean 'good'?)" in capsys.readouterr().err
    assert main(["data", "show", "digits_even", "--template=good"]) == 2
    assert "task 'digits_even' has no templates" in capsys.readouterr().err
