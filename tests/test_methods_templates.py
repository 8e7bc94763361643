"""Prompting and contrast-consistent search inside templates, against plain forward passes."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.special import softmax

import w2s_jax
from w2s_jax import sharding, testing
from w2s_jax.config.validation import validate
from w2s_jax.data.documents import Document
from w2s_jax.data.templated import swapped
from w2s_jax.data.tokenize import soft_labels, tokenize
from w2s_jax.methods import contrast_consistent_search as ccs
from w2s_jax.methods.prompting import _prompted
from w2s_jax.phases import parameters
from w2s_jax.phases.context import Context
from w2s_jax.phases.labelling import LabelWork
from w2s_jax.planning import resolve as resolve_module
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

GOOD = ("{text}\nGood?", "no", "yes")
TONE = ("Tone of {text}:", "bad", "good")
WHICH = ("A {text_a} B {text_b}\nBest:", "A", "B")
ORDER = ("1st {text_b}, 2nd {text_a}:", "second", "first")


class Work(LabelWork):
    """A label maker's work on test documents, with weak labels that are given."""

    def labels(self, split, parent="labels"):
        truth_N = self.documents(split).truth_N
        # A third of the documents have the wrong label.
        return soft_labels(np.where(self.documents(split).ids_N % 3 == 0, 1 - truth_N, truth_N))


def work_of(data_dir, task, title, **templates):
    """The work of a phase of the strong model as it is initialised, and its options."""
    path = data_dir / task / "templates.json"
    path.write_text(
        json.dumps({k: {"text": text, "classes": words} for k, (text, *words) in templates.items()})
    )
    config = testing.tiny_config(data_dir)
    config.losses = ("xent",)
    config.task.name = task
    config.task.max_length = 120
    config.task.test_docs, config.task.validation_docs = 12, 4
    config.pretrain.source = None
    config.method.name = "prompting,contrast_consistent_search"
    config.method.contrast_consistent_search.update(tries=2, iterations=60)
    resolved = resolve(validate(config))
    (phase,) = (phase for phase in plan(resolved).phases if phase.title == f"labels {title}")
    context = Context(resolved, data_dir, sharding.make_mesh(), Console(quiet=True), bool)
    # Only of the test split, for speed.
    return Work(dataclasses.replace(phase, label_splits=("test",)), context)


def options(work, *names):
    return dict(work.phase.method[1]) | ({"templates": names} if names else {})


def made(maker, work, *names):
    ids_N, soft_NC = maker(work, **options(work, *names))["test"]
    np.testing.assert_array_equal(ids_N, work.documents("test").ids_N)
    return soft_NC


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = testing.write_tiny_task(tmp_path_factory.mktemp("data"))
    (data_dir / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        lines = (data_dir / "tiny" / f"{split}.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        rows = []
        for n, (bad, good) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
            better = n % 2
            pair = (bad, good) if better else (good, bad)
            rows.append({"text_a": pair[0], "text_b": pair[1], "label": better})
        path = data_dir / "pairs" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data_dir


def plain(work, text, words):
    """P(label 1) after a prompt, from one forward pass of the bytes of a text and a space."""
    context, phase = work.context, work.phase
    params = parameters.backbone(phase, None, context.store, context.mesh)
    tokens = [1, *(3 + byte for byte in f"{text} ".encode())]
    # One length for all, so that it is compiled once; what follows does not change a decoder.
    tokens_RL = np.zeros((1, phase.model.max_positions), np.int32)
    tokens_RL[0, : len(tokens)] = tokens
    hidden_RLD = np.asarray(w2s_jax.models.forward(phase.model, params, tokens_RL))
    rows = [3 + ord(word[0]) for word in words]
    return softmax(np.asarray(params["embedding"])[rows] @ hidden_RLD[0, len(tokens) - 1])[1]


def texts(work, split="test"):
    """The texts of the documents of a split, from their bytes."""
    documents = work.documents(split)
    return [
        tuple(
            bytes(t - 3 for t in documents.document(n, k).tolist() if t > 2).decode()
            for k in range(documents.num_texts)
        )
        for n in range(len(documents))
    ]


def test_prompting_is_the_mean_over_templates(data_dir):
    work = work_of(data_dir, "tiny", "zero_shot", good=GOOD, tone=TONE)
    assert options(work)["templates"] == ("good", "tone")
    p_NC = made(_prompted, work)
    single = [made(_prompted, work, name) for name in ("good", "tone")]
    np.testing.assert_allclose(p_NC, np.mean(single, axis=0), atol=1e-7)
    for n in (0, 7):
        (text,) = texts(work)[n]
        good = plain(work, f"{text}\nGood?", ("no", "yes"))
        tone = plain(work, f"Tone of {text}:", ("bad", "good"))
        np.testing.assert_allclose(
            [single[0][n, 1], single[1][n, 1], p_NC[n, 1]],
            [good, tone, (good + tone) / 2],
            atol=1e-5,
        )


def test_solved_examples_are_inside_the_template_too(data_dir):
    work = work_of(data_dir, "tiny", "few_shot_truth", good=GOOD)
    asked = []

    class Spy(Work):
        def next_token_labels(self, documents, label_tokens=None):
            asked.append((documents, label_tokens))
            return np.full((len(documents), 2), 0.5, np.float32)

    work = Spy(work.phase, work.context)
    _prompted(work, shots=1, templates=("good",))
    ((documents, label_tokens),) = asked
    assert label_tokens == (3 + ord("n"), 3 + ord("y"))
    solved = {
        f"{text}\nGood? {('no', 'yes')[int(label)]}\n\n"
        for (text,), label in zip(texts(work, "slice1"), work.truth("slice1"), strict=True)
    }
    found = [bytes(t - 3 for t in documents.document(n)[1:].tolist()).decode() for n in range(12)]
    for text, (own,) in zip(found, texts(work), strict=True):
        assert text.endswith(f"{own}\nGood? ")
        example = text.removesuffix(f"{own}\nGood? ")
        # Where both fit into the model's positions.
        assert example in solved or len(example) == 0
    assert sum(text.count("Good?") == 2 for text in found) > 6


def test_pairs_are_asked_about_in_both_orders(data_dir):
    work = work_of(data_dir, "pairs", "zero_shot", which=WHICH, order=ORDER)
    p_NC = made(_prompted, work)
    for n in (0, 5):
        one, two = texts(work)[n]
        expected = []
        for first, second in ((one, two), (two, one)):
            which = plain(work, f"A {first} B {second}\nBest:", ("A", "B"))
            order = plain(work, f"1st {second}, 2nd {first}:", ("second", "first"))
            expected.append([which, order])
        (which, order), (which_swapped, order_swapped) = expected
        p = ((which + 1 - which_swapped) / 2 + (order + 1 - order_swapped) / 2) / 2
        np.testing.assert_allclose(p_NC[n], [1 - p, p], atol=1e-5)


class OrderedFeatures(Work):
    """Features to which order and completion matter much, unlike those of an untrained model."""

    def model_features(self, documents):
        rng = np.random.default_rng(0)
        vectors_VD, turns_D = rng.normal(size=(259, 8)), rng.uniform(0, 3, 8)
        rows = []
        for n in range(len(documents)):
            tokens_L = documents.document(n)
            turns_LD = np.cos(np.arange(len(tokens_L))[:, None] * turns_D)
            # Times the completion's, or normalised completions would be the same.
            rows.append((vectors_VD[tokens_L] * turns_LD).sum(0) * vectors_VD[tokens_L[-2]])
        return np.tanh(np.array(rows, np.float32))


@pytest.mark.parametrize("title", ["zero_shot", "few_shot_weak", "contrast_consistent_search"])
def test_swapping_the_texts_of_all_documents_swaps_their_probabilities(
    data_dir, monkeypatch, title
):
    maker = ccs._contrast if title == "contrast_consistent_search" else _prompted
    before = work_of(data_dir, "pairs", title, which=WHICH, order=ORDER)
    original = resolve_module.load

    def load(*args, **how):
        loaded = original(*args, **how)
        turned = {split: swapped(documents) for split, documents in loaded.documents.items()}
        return dataclasses.replace(loaded, documents=turned)

    monkeypatch.setattr(resolve_module, "load", load)
    after = work_of(data_dir, "pairs", title, which=WHICH, order=ORDER)
    if maker is ccs._contrast:
        before, after = (OrderedFeatures(work.phase, work.context) for work in (before, after))
    rows = after.documents("test").rows_of(before.documents("test").ids_N)
    assert [text[::-1] for text in texts(before)] == [texts(after)[n] for n in rows]
    p_NC = made(maker, before)
    assert p_NC[:, 1].std() > (0.05 if maker is ccs._contrast else 1e-3)
    # The probe's loss sums the same terms in another order.
    atol = 1e-4 if maker is ccs._contrast else 1e-6
    np.testing.assert_allclose(made(maker, after)[rows][:, ::-1], p_NC, atol=atol)


def features(work, prompts, answer):
    """Normalised features of prompts of bytes, completed by a space and a byte."""
    documents = [
        Document(id=n, tokens=(1, *(3 + byte for byte in f"{text} {answer}".encode()), 2))
        for n, text in enumerate(prompts)
    ]
    tokenized, _ = tokenize(documents, None, max_length=None, overlong="error")
    return ccs.normalised(work.model_features(tokenized))


def search(work, plus, minus):
    """Predictions of a probe for test prompts; `plus` and `minus` are [slice 2, test]."""
    settings = options(work)
    probe = ccs.fit_ccs(
        *(np.concatenate([order[0] for order in side]) for side in (plus, minus)),
        seed=work.phase.seed,
        tries=settings["tries"],
        steps=settings["iterations"],
    )
    found = []
    for split in (0, 1):
        p = [
            ccs.predict_ccs(probe, order[split], other[split])
            for order, other in zip(plus, minus, strict=True)
        ]
        found.append(p[0] if len(p) == 1 else (p[0] + 1 - p[1]) / 2)
    weak_N = work.labels("slice2")[:, 1]
    same = np.mean((found[0] > 0.5) == (weak_N > 0.5)) >= 0.5
    return found[1] if same else 1 - found[1]


def test_the_search_is_the_mean_of_a_probe_for_each_template(data_dir):
    work = work_of(data_dir, "tiny", "contrast_consistent_search", good=GOOD, tone=TONE)
    p_NC = made(ccs._contrast, work)
    expected = []
    for template, *words in (GOOD, TONE):
        prompts = [
            [template.replace("{text}", text) for (text,) in texts(work, split)]
            for split in ("slice2", "test")
        ]
        minus, plus = ([[features(work, own, word[0]) for own in prompts]] for word in words)
        expected.append(search(work, plus, minus))
    np.testing.assert_allclose(p_NC[:, 1], np.mean(expected, axis=0), atol=1e-4)
    np.testing.assert_allclose(p_NC.sum(1), 1, atol=1e-6)


def test_the_search_sees_both_orders_of_a_pair(data_dir):
    work = work_of(data_dir, "pairs", "contrast_consistent_search", which=WHICH)
    template, *words = WHICH
    sides = []
    for word in words:
        orders = []
        for order in (1, -1):
            prompts = [
                [
                    template.replace("{text_a}", pair[::order][0]).replace(
                        "{text_b}", pair[::order][1]
                    )
                    for pair in texts(work, split)
                ]
                for split in ("slice2", "test")
            ]
            orders.append([features(work, own, word) for own in prompts])
        sides.append(orders)
    minus, plus = sides
    p_NC = made(ccs._contrast, work)
    np.testing.assert_allclose(p_NC[:, 1], search(work, plus, minus), atol=1e-4)


@pytest.mark.medium
def test_a_run_inside_a_template_compares_the_texts_of_a_pair(data_dir, tmp_path, capsys):
    templates = {"which": {"text": WHICH[0], "classes": ["A", "B"]}}
    (data_dir / "pairs" / "templates.json").write_text(json.dumps(templates))
    config = testing.tiny_config(data_dir)
    config.losses = ("xent",)
    config.task.name, config.task.template, config.task.max_length = "pairs", "which", 120
    config.method.name, config.method.prompting.shots = "prompting", 0
    result = w2s_jax.run(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "prompting: documents inside the template which, in both orders, averaged" in out
    assert set(result["students"]) == {"xent", "prompting_zero_shot"}
    ceiling = tmp_path / "run" / "phases" / result["ceiling"]["phase"]
    spec = json.loads((ceiling / "config.json").read_text())["spec"]
    # One text, one read-out, a head of two classes that are told by the words.
    assert "texts" not in spec and spec["label_tokens"] == [3 + ord("A"), 3 + ord("B")]
    assert "task.template" in (tmp_path / "run" / "report" / "report.html").read_text()
