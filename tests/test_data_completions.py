"""Prompts and completions as tokens, against concatenation by hand; tasks that ask for them."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers as tk
from refusals import error

from w2s_jax.core.errors import InputError
from w2s_jax.data import Candidate, Task, completions, load_task, register_task, tokenizers
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.splits import make_splits
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tokenize import tokenize
from w2s_jax.data.tokenizers import ByteTokenizer, load_tokenizer, register_tokenizer

BYTES = ByteTokenizer()


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    monkeypatch.setattr(tokenizers, "BUILT_IN", dict(tokenizers.BUILT_IN))
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer with a token for 'ab' and none for other letters, a prefix and an end."""
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5, " ": 6}
    backend = tk.Tokenizer(tk.models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>"))
    backend.decoder = tk.decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    backend.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    backend.save(str(path))
    return load_tokenizer(str(path))


def document(n, prompt, target, **changes):
    return Document(id=n, text=prompt, target=target, where=f"f.jsonl, line {n}", **changes)


def converted(documents, tokenizer=BYTES, max_length=None, overlong="truncate", **options):
    return completions.tokenize_completions(
        documents, tokenizer, max_length=max_length, overlong=overlong, **options
    )


def texts(found):
    """Documents of bytes as texts; special tokens as numbers."""
    return [
        "".join(chr(t - 3) if t > 2 else f"[{t}]" for t in found.document(n).tolist())
        for n in range(len(found))
    ]


def test_prompt_and_target_are_joined_without_a_token_across_the_seam(letters):
    found, counts = converted([document(1, "aba", "ba"), document(2, "a", "b a")], letters)
    # <s> ab a | b a </s>, although 'ab' is a token; <s> a | b ' ' a </s>
    assert found.tokens_T.tolist() == [0, 5, 3, 4, 3, 1, 0, 3, 4, 6, 3, 1]
    assert found.offsets.tolist() == [0, 6, 12] and found.tokens_T.dtype == np.int32
    assert found.prompt_lengths_P.tolist() == [3, 2]
    assert found.loss_weights_T.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    assert found.loss_weights_T.dtype == np.float32
    assert np.isnan(found.labels_N).all() and found.soft_N is None and found.num_texts == 1
    assert found.ids_N.tolist() == [1, 2] and found.ids_N.dtype == np.uint64
    assert (counts["documents"], counts["tokens"]) == (2, 12)
    assert (counts["targets"], counts["longest_target"]) == (7, 4)
    # The same documents as one text do have that token.
    whole, _ = tokenize([Document(id=2, text="ab a")], letters, max_length=None, overlong="error")
    assert whole.tokens_T.tolist() == [0, 5, 6, 3]


@pytest.mark.parametrize("side", ["start", "end"])
def test_only_prompts_are_cut_and_never_inside_a_character(side):
    rng = np.random.default_rng(0)
    documents = []
    for n in range(200):
        alphabet = list("xyé日🙂")
        prompt = "".join(rng.choice(alphabet, rng.integers(4, 12)))
        documents.append(document(n, prompt, "".join(rng.choice(alphabet, rng.integers(1, 4)))))
    found, counts = converted(documents, max_length=24, truncate=side)
    over = 0
    for n, d in enumerate(documents):
        target = d.target.encode()
        room = 24 - 2 - len(target)
        kept = d.text
        while len(kept.encode()) > room:
            kept = kept[1:] if side == "start" else kept[:-1]
        over += kept != d.text
        expected = [1, *(b + 3 for b in (kept.encode() + target)), 2]
        assert found.document(n).tolist() == expected
        assert found.prompt_lengths_P[n] == 1 + len(kept.encode())
    assert counts["overlong"] == counts["truncated"] == over > 50


def test_policies_for_documents_that_are_too_long():
    documents = [
        document(1, "long prompt", "x"),
        document(2, "p", "x"),
        document(3, "p", "0123456"),
    ]
    found, counts = converted(documents, max_length=8, overlong="drop")
    assert texts(found) == ["[1]px[2]"] and found.ids_N.tolist() == [2]
    assert (counts["overlong"], counts["dropped"], counts["longest_target"]) == (2, 2, 2)
    message = error(converted, documents, max_length=8, overlong="error")
    assert "task.max_length: 2 of 3 documents have more than 8 tokens" in message
    assert "the longest has 14: f.jsonl, line 1" in message
    assert "2 of 2 documents" in error(
        converted, [documents[0], documents[2]], max_length=8, overlong="drop"
    )
    message = error(converted, documents, max_length=8)
    assert message.startswith("f.jsonl, line 3: its target has 7 tokens, which leave no room")
    # A prompt of one character of several bytes, for which there is no room either.
    assert "no room" in error(converted, [document(1, "日", "0123")], max_length=8)
    assert texts(converted([document(1, "ab", "01234")], max_length=8)[0]) == ["[1]b01234[2]"]


def test_documents_that_are_refused(letters):
    good = document(1, "a", "b")
    no_end = dataclasses.replace(letters, end_of_text=None)
    cases = [
        ([good], no_end, "has no token that ends a text"),
        ([good], None, "needs a tokenizer"),
        ([good, document(2, "a", None)], BYTES, "f.jsonl, line 2 needs a target"),
        ([good, document(2, "a", " \n")], BYTES, r"f.jsonl, line 2: field 'target': empty"),
        ([Document(id=1, tokens=(1, 2), target="a")], BYTES, "document 1 has tokens"),
        ([Document(id=1, texts=("a", "b"), target="a")], BYTES, "document 1 has no text"),
        ([document(1, "", "a")], no_prefix(letters), "line 1 has no tokens"),
    ]
    for documents, tokenizer, message in cases:
        assert message in error(converted, documents, tokenizer)
    assert "task.overlong" in error(converted, [good], overlong="chunk")
    assert "task.truncate" in error(converted, [good], truncate="middle")
    message = error(converted, [document(1, "", "a"), good], empty="error")
    assert "task.empty='skip' leaves such documents out" in message
    # An empty prompt is a prefix alone, or left out.
    assert texts(converted([document(1, "", "a")])[0]) == ["[1]a[2]"]
    found, counts = converted([document(1, "", "a"), good], empty="skip")
    assert texts(found) == ["[1]ab[2]"] and counts["empty"] == 1


def no_prefix(tokenizer):
    return dataclasses.replace(tokenizer, prefix=())


def test_characters_that_a_tokenizer_cannot_spell_are_named(letters):
    documents = [document(1, "a", "ab"), document(2, "xx", "a"), document(3, "a", "baNé")]
    message = error(converted, documents, letters)
    assert message.startswith("f.jsonl, line 3: the tokenizer")
    assert "cannot spell 'N', 'é' in the target 'baNé'" in message
    more = [*documents, document(4, "a", "N"), document(5, "a", "baNé"), document(6, "a", "z")]
    message = error(converted, more, letters)
    assert "'N', 'z', 'é'" in message and "(and 2 more)" in message
    # Prompts may have unknown characters. Lone surrogates have no bytes that can be read.
    assert len(converted(documents[:2], letters)[0]) == 2
    assert r"'\ud800'" in error(converted, [document(1, "a", "x\ud800")])
    # A token that reads as other characters, none of which is lost.
    assert "which reads 'ba'" in error(converted, [document(1, "a", "ab")], Backwards())


class Backwards:
    """Reads texts backwards."""

    name, digest, prefix, end_of_text = "backwards", "0", (1,), 2

    def encode_batch(self, texts):
        return BYTES.encode_batch(texts)

    def decode(self, tokens_L):
        return BYTES.decode(tokens_L)[::-1]


@pytest.fixture
def three():
    return converted([document(1, "p", "xy"), document(2, "qq", "z"), document(3, "r", "w")])[0]


def test_completions_are_exchanged_and_prompts_kept(three):
    assert [p.tolist() for p in completions.prompts_of(three)] == [
        [1, *BYTES.encode_batch([p])[0]] for p in ("p", "qq", "r")
    ]
    own = completions.completions_of(three)
    assert [BYTES.decode(c) for c in own] == ["xy", "z", "w"]
    again = completions.with_completions(three, own, 2)
    assert again.digest() == three.digest()
    new = [np.array([9]), np.zeros(0, np.int32), np.array([7, 2, 2])]
    ended_N = np.array([True, True, False])
    found = completions.with_completions(three, new, 2, ended_N=ended_N)
    assert [found.document(n).tolist() for n in range(3)] == [
        [1, 3 + ord("p"), 9, 2],
        [1, 3 + ord("q"), 3 + ord("q"), 2],
        [1, 3 + ord("r"), 7, 2, 2],
    ]
    assert found.prompt_lengths_P.tolist() == [2, 3, 2]
    assert found.loss_weights_T.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1]
    assert found.ids_N.tolist() == [1, 2, 3]
    assert [c.tolist() for c in completions.completions_of(found.select([0, 1]))] == [[9], []]
    none = completions.with_completions(three, new[:1] * 3, None)
    assert [c.tolist() for c in completions.completions_of(none, 2)] == [[9]] * 3
    with pytest.raises(ValueError, match="2 completions of 3"):
        completions.with_completions(three, new[:2], 2)


def test_pairs_are_a_prompt_with_two_completions(three):
    first = [np.array([5]), np.array([6, 6]), np.zeros(0, np.int32)]
    second = [np.array([7, 7]), np.array([8]), np.array([9])]
    pairs = completions.paired(three, first, second, 2)
    assert len(pairs) == 3 and pairs.num_texts == 2 and pairs.ids_N.tolist() == [1, 2, 3]
    prompts = completions.prompts_of(three)
    for n in range(3):
        for k, tokens in enumerate((first[n], second[n])):
            assert pairs.document(n, k).tolist() == [*prompts[n], *tokens, 2]
    assert pairs.prompt_lengths_P.tolist() == [2, 2, 3, 3, 2, 2]
    expected = [w for n in range(3) for t in (first[n], second[n]) for w in weights(prompts[n], t)]
    assert pairs.loss_weights_T.tolist() == expected
    assert [p.tolist() for p in completions.prompts_of(pairs)] == [p.tolist() for p in prompts]
    assert [c.tolist() for c in completions.completions_of(pairs)] == [
        t.tolist() for n in range(3) for t in (first[n], second[n])
    ]
    ended_N2 = np.array([[True, False], [False, True], [True, True]])
    open_ended = completions.paired(three, first, second, 2, ended_N2=ended_N2)
    assert (pairs.piece_lengths_P - open_ended.piece_lengths_P).tolist() == [0, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="3 and 2 completions of 3"):
        completions.paired(three, first, second[:2], 2)


def weights(prompt, completion):
    return [0.0] * len(prompt) + [1.0] * (len(completion) + 1)


def test_documents_weigh_the_same(three):
    found = completions.weighted_by_document(three)
    expected = [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0.5, 0.5, 0, 0, 0.5, 0.5]
    assert found.loss_weights_T == pytest.approx(expected)
    nothing = completions.with_completions(three, [np.zeros(0, np.int32)] * 3, None)
    assert not completions.weighted_by_document(nothing).loss_weights_T.any()
    assert found.select([1]).loss_weights_T.tolist() == [0, 0, 0, 0.5, 0.5]


# Tasks.


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(*pairs):
    return [{"prompt": p, "target": t} for p, t in pairs]


def test_a_folder_of_prompts_and_targets_is_a_task(tmp_path):
    train = rows(("2 + 2 =", " 4"), ("2 - 2 =", " 0"), ("2 + 2 =", " four"), ("q\n", "a"))
    write(tmp_path / "sums" / "train.jsonl", [{**train[0], "group": 7}, *train[1:]])
    write(tmp_path / "sums" / "test.jsonl", rows(("3 + 3 =", " 6")))
    loaded = load("sums", data_dir=str(tmp_path))
    assert loaded.task.kind == "generation" and loaded.task.truncate == "start"
    found = loaded.documents["train"]
    # As they are in the file, because nothing is put between them.
    assert [(d.text, d.target) for d in found] == [(r["prompt"], r["target"]) for r in train]
    assert [d.group for d in found] == ["7", None, None, None]
    assert all(d.label is None and d.soft_label is None for d in found)
    assert loaded.notes == ("train: 1 prompt occurs with different targets, in 2 documents",)
    # Ids depend on prompt and target, and not on the order.
    ids = {(d.text, d.target): d.id for d in found}
    assert len(set(ids.values())) == 4
    write(tmp_path / "sums" / "train.jsonl", train[::-1])
    again = load_task("sums", data_dir=str(tmp_path))["train"]
    assert {(d.text, d.target): d.id for d in again} == ids
    as_csv = ["prompt,target", *(f'"{r["prompt"]}","{r["target"]}"' for r in train)]
    (tmp_path / "sums" / "train.jsonl").unlink()
    (tmp_path / "sums" / "train.csv").write_text("\n".join(as_csv))
    again = load_task("sums", data_dir=str(tmp_path))["train"]
    assert {(d.text, d.target): d.id for d in again} == ids


def test_bad_records_of_such_a_folder(tmp_path):
    bad = {
        "line 2: field 'target': empty target: ' '": rows(("a", "b"), ("a", " ")),
        "line 1: field 'target' is missing; the record has: prompt": [{"prompt": "a"}],
        "line 1: field 'target': empty target: ''": [{"prompt": "a", "target": None}],
        "line 1: field 'target': not text: 4": [{"prompt": "a", "target": 4}],
        "empty document: ' '; task.empty='skip'": rows((" ", "b")),
        "both 'prompt' and 'target' and 'text'": [{"text": "a", "prompt": "b", "target": "c"}],
        "'target' and 'text_a' or 'text_b'": [{"text_a": "a", "prompt": "b", "target": "c"}],
    }
    for message, records in bad.items():
        write(tmp_path / "bad" / "train.jsonl", records)
        assert message in error(load_task, "bad", data_dir=str(tmp_path))
    # A column that is not used does not change the kind.
    records = [{"text": "a", "label": n, "prompt": "x"} for n in (0, 1)]
    write(tmp_path / "old" / "train.jsonl", records)
    assert load("old", data_dir=str(tmp_path)).task.kind == "classification"


def test_prompts_that_differ_in_signs_only_are_no_group():
    """Their words are the same, and so are those of positions of a board."""
    signs = [document(n, f"2 {'+-*/'[n % 4]} {n // 4}", "x") for n in range(40)]
    again = [document(40 + n, f" {signs[n].text}\n", "y") for n in range(8)]
    sizes = {"train_docs": None, "test_docs": None, "validation_docs": 0, "balance": False}
    removed = {}
    splits = make_splits({"train": signs[:20], "test": signs[20:]}, **sizes, removed=removed)
    assert {name: len(found) for name, found in splits.items()} == {
        "slice1": 10, "slice2": 10, "validation": 0, "test": 20,
    }  # fmt: skip
    assert removed == {"train": 0}
    # The same prompt is a group, whatever its white space and targets.
    splits = make_splits({"train": signs, "test": again[:4]}, **sizes)
    assert len(splits["slice1"]) + len(splits["slice2"]) == 36
    splits = make_splits({"train": [*signs, *again], "test": [document(99, "?", "z")]}, **sizes)
    for name in ("slice1", "slice2"):
        ids = {d.id for d in splits[name]}
        assert all((n in ids) == (40 + n in ids) for n in range(8)), name


def expand(record, where):
    return [Candidate(record["q"], None, target=record["a"], meta={"n": len(record["a"])})]


def test_tasks_in_python(tmp_path):
    options = {"fields": ("q", "a"), "expand": expand, "kind": "generation"}
    task = register_task(
        Task(
            "own", "", "", **options,
            answer=lambda text: text.rpartition("=")[2].strip(),
            scores={"short": lambda answer, d: len(answer) < 3},
        )
    )  # fmt: skip
    write(tmp_path / "own" / "train.jsonl", [{"q": "a", "a": "so = 5"}])
    (found,) = load_task("own", data_dir=str(tmp_path))["train"]
    assert task.generates and (found.text, found.target, found.meta) == ("a", "so = 5", {"n": 6})
    assert task.is_correct(task.answer_in("x = 5 "), found) and not task.is_correct("4", found)
    register_task(Task("strip", "", "", **options))
    assert TASKS["strip"].answer_in(" a\n") == "a" and TASKS["strip"].is_correct("so = 5", found)
    wrong = {
        "`answer`, which belongs to tasks of kind 'generation'": {
            **options, "kind": "classification", "answer": str,
        },
        "has `tokenizer`": {**options, "kind": "preference", "tokenizer": "bytes"},
        "has `orders`, which belongs to tasks of classes": {**options, "orders": True},
        "has `classes`": {**options, "classes": ("a", "b")},
        "`correct` is 'yes', not a function": {**options, "correct": "yes"},
        "`scores` is {'a': 1}, not a dict of functions": {**options, "scores": {"a": 1}},
        "`pretraining` is <class 'str'>, not a dict": {**options, "pretraining": str},
        "task.kind: unknown value 'generatin'": {**options, "kind": "generatin"},
    }  # fmt: skip
    for message, attributes in wrong.items():
        assert message in error(register_task, Task("wrong", "", "", **attributes))
    returned = {
        "returns 2 candidates": [Candidate("a", None, target="b")] * 2,
        "one text as its prompt, not a pair": [Candidate(("a", "b"), None, target="b")],
        "has a target, not a label": [Candidate("a", 1, target="b")],
        "line 1: the record needs a target": [Candidate("a", None)],
        "line 1: the target is not text: 5": [Candidate("a", None, target=5)],
    }
    for n, (message, candidates) in enumerate(returned.items()):
        attributes = {**options, "expand": lambda record, where, found=candidates: found}
        register_task(Task(f"bad{n}", "", "", **attributes, folder="own"))
        assert message in error(load_task, f"bad{n}", data_dir=str(tmp_path))


def test_tokenizers_by_name():
    register_tokenizer("backwards", Backwards)
    assert isinstance(load_tokenizer("backwards"), Backwards)
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    message = error(load_tokenizer, "backward")
    assert "did you mean 'backwards'?" in message
    assert "allowed: bytes, chess_board, backwards, a folder" in message
    with pytest.raises(InputError, match="'bytes' is already registered"):
        register_tokenizer("bytes", ByteTokenizer)
    with pytest.raises(InputError, match="letters, digits"):
        register_tokenizer("a/b", ByteTokenizer)
