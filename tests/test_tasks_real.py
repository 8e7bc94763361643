"""Every task of which real data are at hand, against counts made here from the raw files."""

import gzip
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from w2s_jax.data.loading import load
from w2s_jax.data.splits import make_splits
from w2s_jax.data.tasks import get_task

ROOT = os.environ.get("W2S_TEST_DATA")
pytestmark = pytest.mark.skipif(not ROOT, reason="W2S_TEST_DATA is not set: no real data")


def clean(*texts):
    return tuple(text.strip() for text in texts)


def different(right, *others):
    return any(other.strip().casefold() != right.strip().casefold() for other in others)


def sentence_of(scenario):
    return scenario.split("[SEP]")[0].strip()


def cola(r):
    return [r["label"]], None


def answers(right, others, group):
    """Labels of a record with answers to choose from: one right and one wrong item, or none."""
    return ([1, 0] if different(right, *others) else []), group


def openbookqa(r):
    texts = dict(zip(r["choices"]["label"], r["choices"]["text"], strict=True))
    return answers(texts[r["answerKey"]], texts.values(), r["question_stem"].strip())


def sciq(r):
    wrong = [r[f"distractor{i}"] for i in (1, 2, 3)]
    return answers(r["correct_answer"], wrong, r["question"].strip())


def piqa(r):
    return answers((r["sol1"], r["sol2"])[r["label"]], (r["sol1"], r["sol2"]), r["goal"].strip())


def pair(r):
    group = re.match(r"\s*(Human: .*?)\n\nAssistant:", r["chosen"], re.DOTALL).group(1)
    return (["either"] if r["chosen"].strip() != r["rejected"].strip() else []), group


def single(r):
    labels, group = pair(r)
    return [1, 0] * len(labels), group


# For each task: labels and shared context of the documents of a raw record.
# 'either' is a label that is drawn.
RAW = {
    "sst2": cola,
    "amazon_blitzer": cola,
    "imdb": cola,
    "rotten_tomatoes": cola,
    "cola": cola,
    "twitter_sentiment": lambda r: ({0: [0], 1: [], 2: [1]}[r["label"]], None),
    "boolq": lambda r: ([int(r["answer"])], r["passage"].strip()),
    "dream": lambda r: answers(r["answer"], r["choice"], "\n".join(clean(*r["dialogue"]))),
    "hellaswag": lambda r: answers(r["endings"][int(r["label"])], r["endings"], r["ctx"].strip()),
    "piqa": piqa,
    "openbookqa": openbookqa,
    "sciq": sciq,
    "sciq_with_support": sciq,
    "mc_taco": lambda r: ([r["label"]], "\n".join(clean(r["sentence"], r["question"]))),
    "ethics_deontology": lambda r: ([r["label"]], r["scenario"].strip()),
    "ethics_justice": lambda r: ([r["label"]], ...),
    "ethics_virtue": lambda r: ([r["label"]], sentence_of(r["scenario"])),
    "ethics_utilitarianism": lambda r: (["either"], ...),
    "gsm8k": lambda r: ([None], None),
    "gsm8k_verification": lambda r: ([1, 0], r["question"].strip()),
    "hh_rlhf_helpful": pair,
    "anthropic_hh": single,
}
# Of the tasks whose labels the manifest counts: the label that it counts as a document's label 1.
MANIFEST_POSITIVE = {
    **dict.fromkeys(["sst2", "amazon_blitzer", "imdb", "rotten_tomatoes", "cola", "mc_taco"], "1"),
    **dict.fromkeys(["ethics_deontology", "ethics_justice", "ethics_virtue"], "1"),
    "twitter_sentiment": "2",
    "boolq": "True",
}


def folder_of(name):
    return get_task(name).folder or name


@cache
def raw(name):
    """Raw records by split."""
    found = {}
    for path in sorted((Path(ROOT) / "data" / folder_of(name)).iterdir()):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found[path.name.removesuffix(".jsonl.gz")] = [json.loads(line) for line in file]
    return found


@cache
def loaded(name):
    return load(name, data_dir=str(Path(ROOT) / "data"))


def test_every_folder_of_a_task_is_tested():
    from w2s_jax.data.tasks import TASKS

    folders = {path.name for path in (Path(ROOT) / "data").iterdir() if path.is_dir()}
    at_hand = {n for n, task in TASKS.items() if {n, task.folder} & folders}
    # test_chess.py has the puzzles.
    assert at_hand - {"chess_puzzles"} == set(RAW)


@pytest.mark.medium
@pytest.mark.parametrize("name", list(RAW))
def test_counts_and_balance(name):
    documents = loaded(name).documents
    with (Path(ROOT) / "data" / "MANIFEST.json").open() as file:
        manifest = json.load(file)[folder_of(name)]["splits"]
    assert set(documents) == set(raw(name)) == set(manifest)
    assert all(
        note.startswith("task ") or "that the task does not use" in note
        for note in loaded(name).notes
    )
    for split, records in raw(name).items():
        assert len(records) == manifest[split]["rows"]
        expected = [RAW[name](record)[0] for record in records]
        left_out = f"{split}: skipped {expected.count([]):,} record"
        noted = any(note.startswith(left_out) for note in loaded(name).notes)
        assert noted == (expected.count([]) > 0)
        labels = [label for record in expected for label in record]
        found = [document.label for document in documents[split]]
        assert len(found) == len(labels)
        if "either" in labels:
            # Five standard deviations of a fair coin.
            assert abs(sum(found) - len(found) / 2) < 2.5 * len(found) ** 0.5
            assert set(labels) == {"either"}
        else:
            assert found == labels
        if name in MANIFEST_POSITIVE:
            assert sum(found) == manifest[split]["label_dist"][MANIFEST_POSITIVE[name]]
        assert len({document.id for document in documents[split]}) == len(found)


@pytest.mark.parametrize("name", list(RAW))
def test_groups(name):
    """Documents of a group are those whose records share the context."""
    for split, records in raw(name).items():
        documents = iter(loaded(name).documents[split])
        for record in records:
            labels, context = RAW[name](record)
            for _ in labels:
                group = next(documents).group
                assert context is ... or group == context
        assert next(documents, None) is None


@pytest.mark.parametrize("name", list(RAW))
def test_candidates_of_a_record_differ(name):
    task = get_task(name)
    for split, records in raw(name).items():
        for record in records[:2000]:
            candidates = task.expand(record, split)
            texts = [c.text for c in candidates]
            # Two wrong answers of SciQ may be equal: its candidates are older than this rule.
            frozen = name.startswith("sciq")
            assert len(set(texts)) == len(texts) or (frozen and texts.count(texts[0]) == 1)


def test_dialogues_of_dream_are_groups():
    """By the data's own numbers, which the groups do not use."""
    for split, records in raw("dream").items():
        groups = defaultdict(set)
        for record, document in zip(records, loaded("dream").documents[split][::2], strict=True):
            groups[record["dialogue_id"]].add(document.group)
        assert set(map(len, groups.values())) == {1}
        assert (
            len(groups) - len({document.group for document in loaded("dream").documents[split]})
            < 10
        )


def test_the_right_answer_is_right():
    """The right item shows the right answer of the record, the wrong one another."""
    right = {
        "dream": lambda r: r["answer"],
        "piqa": lambda r: r[f"sol{r['label'] + 1}"],
        "hellaswag": lambda r: r["endings"][int(r["label"])],
        "openbookqa": lambda r: r["choices"]["text"]["ABCD".index(r["answerKey"])],
    }
    for name, answer in right.items():
        for split, records in raw(name).items():
            documents = loaded(name).documents[split]
            for n, record in enumerate(records):
                yes, no = documents[2 * n : 2 * n + 2]
                shown = [d.text.splitlines()[-2].partition(": ")[2] for d in (yes, no)]
                # Some answers have line breaks.
                wanted = answer(record).strip().splitlines()[-1].strip()
                assert shown[0] == wanted or yes.text.count(answer(record).strip())
                assert yes.text != no.text and yes.text.count("\n") >= 2


def test_stems_of_justice():
    """Statements of a group begin alike; most of those with the same beginning are adjacent."""
    for documents in loaded("ethics_justice").documents.values():
        groups = defaultdict(list)
        for document in documents:
            assert document.text.casefold().startswith(document.group)
            groups[document.group].append(document)
        assert max(map(len, groups.values())) < 50
        assert sum(len(g) > 1 for g in groups.values()) > 0.15 * len(groups)


def test_rankings_of_utilitarianism():
    """Texts show the pair in the order of the label; pairs with a common scenario form a group."""
    for split, documents in loaded("ethics_utilitarianism").documents.items():
        better = {}
        for record, document in zip(raw("ethics_utilitarianism")[split], documents, strict=True):
            first, second = document.text.splitlines()[:2]
            pair = clean(record["baseline"], record["less_pleasant"])
            shown = (first.removeprefix("First: "), second.removeprefix("Second: "))
            assert shown == (pair if document.label == 1 else pair[::-1])
            better[pair[0]] = document.group
        links = [
            better[record["less_pleasant"].strip()] == document.group
            for record, document in zip(raw("ethics_utilitarianism")[split], documents, strict=True)
            if record["less_pleasant"].strip() in better
        ]
        if split == "train":  # the others have rankings of scenarios with no common beginning
            assert len(links) > 900 and sum(links) > 0.95 * len(links)


def test_pairs_are_in_the_order_of_the_label():
    for split, records in raw("hh_rlhf_helpful").items():
        records = [r for r in records if r["chosen"].strip() != r["rejected"].strip()]
        documents = loaded("hh_rlhf_helpful").documents[split]
        singles = loaded("anthropic_hh").documents[split]
        for n, (record, document) in enumerate(zip(records, documents, strict=True)):
            chosen, rejected = clean(record["chosen"], record["rejected"])
            assert document.text is None and document.label in (0, 1)
            assert document.texts[document.label] == chosen
            assert document.texts[1 - document.label] == rejected
            assert [d.text for d in singles[2 * n : 2 * n + 2]] == [chosen, rejected]


def test_corrupted_solutions():
    """On all records: the final number alone changes, in the last step and after it."""
    inside = total = 0
    for split, records in raw("gsm8k_verification").items():
        documents = loaded("gsm8k_verification").documents[split]
        for n, record in enumerate(records):
            right, wrong = documents[2 * n : 2 * n + 2]
            final = record["answer"].split("####")[1].strip()
            lines, wrong_lines = right.text.splitlines(), wrong.text.splitlines()
            assert lines[-2] == f"Final answer: {final}"
            corrupted = wrong_lines[-2].removeprefix("Final answer: ")
            assert float(corrupted.replace(",", "")) != float(final.replace(",", ""))
            assert re.sub(r"\d", "9", corrupted) == re.sub(r"\d", "9", final)
            assert re.search("0*$", corrupted).group() == re.search("0*$", final).group()
            assert len(right.text) == len(wrong.text) and "<<" not in right.text
            # Nothing before the last step differs, and in it nothing but digits.
            assert lines[:-3] == wrong_lines[:-3] and lines[-1] == wrong_lines[-1]
            assert re.sub(r"\d", "9", lines[-3]) == re.sub(r"\d", "9", wrong_lines[-3])
            assert sum(a != b for a, b in zip(final, corrupted, strict=True)) == 1
            total += 1
            inside += lines[-3] != wrong_lines[-3]
    assert total == 7319 and inside > 0.995 * total


def test_answers_of_word_problems():
    """On all records: the target ends in the number, and the answer in it is that number."""
    task = get_task("gsm8k")
    for split, records in raw("gsm8k").items():
        for record, document in zip(records, loaded("gsm8k").documents[split], strict=True):
            steps, number = record["answer"].split("\n#### ")
            assert document.text == record["question"].strip()
            assert document.target.splitlines()[-1] == f"#### {number.strip()}"
            plain = re.sub(r"<<[^>]*>>", "", steps).split()
            assert document.target.split()[:-2] == plain
            answer = task.answer_in(document.target)
            assert float(answer) == float(number.replace(",", ""))
            assert task.is_correct(answer, document) and answer == document.meta["answer"]


def test_the_number_alone_does_not_tell_right_from_wrong():
    """A guess from length, first and second digit, zeros at the end, counted in one split."""

    def features(document):
        number = document.meta["answer"]
        digits = re.sub(r"\D", "", number)
        zeros = len(digits) - len(digits.rstrip("0"))
        return [
            (len(digits), digits[0]),
            (len(digits), digits[1:2], zeros),
            (len(digits), digits[-1]),
            ("." in number, "," in number),
        ]

    train, test = (loaded("gsm8k_verification").documents[s] for s in ("train", "test"))
    for n in range(4):
        votes = defaultdict(Counter)
        for document in train:
            votes[features(document)[n]][document.label] += 1
        hits = sum(
            votes[features(d)[n]][d.label] >= votes[features(d)[n]][1 - d.label] for d in test
        )
        ties = sum(votes[features(d)[n]][0] == votes[features(d)[n]][1] for d in test)
        assert (hits - ties / 2) / len(test) < 0.56


def share_of_ones(documents):
    return sum(d.label for d in documents) / len(documents)


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in RAW if not get_task(name).generates])
def test_both_protocols_cut_it_as_described(name):
    documents = loaded(name).documents
    carved = 300 if len({"train", "validation", "test"} & set(documents)) == 1 else 0
    sizes = {"test_docs": carved or None, "validation_docs": 100}
    if "train" not in documents:
        sizes["train_split"] = "validation"
        assert name == "twitter_sentiment" or get_task(name).train_split == "validation"
    paper = make_splits(documents, train_docs=None, balance=True, **sizes)
    parts = {part: paper[part] for part in ("slice1", "slice2", "validation", "test")}
    groups = {
        part: {d.group or " ".join(" ".join(d.texts or (d.text,)).casefold().split()) for d in docs}
        for part, docs in parts.items()
    }
    for a, b in itertools.combinations(parts, 2):
        assert not groups[a] & groups[b], (a, b)
    assert share_of_ones(paper["test"]) == share_of_ones(paper["validation"]) == 0.5
    halves = [len(paper["slice1"]), len(paper["slice2"])]
    assert abs(halves[0] - halves[1]) <= max(Counter(d.group for d in paper["slice1"]).values())
    assert 0.45 <= share_of_ones(paper["slice1"] + paper["slice2"]) <= 0.55

    one = load(name, data_dir=str(Path(ROOT) / "data"), item_expansion="one").documents
    sizes["validation_docs"] = 0
    released = make_splits(
        one, train_docs=None, balance=False, balance_test=False, grouping=False, **sizes
    )
    half, other = len(released["slice1"]), len(released["slice2"])
    pool = one["train"] if "train" in one else one[next(iter(one))]
    assert half == (half + other) // 2
    assert half + other == len(pool) - carved
    # Classes as they come, in both halves but for chance (five standard deviations).
    for part in ("slice1", "slice2"):
        assert abs(share_of_ones(released[part]) - share_of_ones(pool)) < 2.5 / half**0.5
