"""Every task on small records in the hub's and in TFDS's form, one row a task."""

import csv
import json
from collections import Counter

import pytest
from task_rows import ROWS

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load
from w2s_jax.data.task import KINDS
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.tasks.mathematics import change_of, corrupted, final_number, plain_number

# Tasks of which a catalogue has nothing. All others have an origin in both.
NOT_ON_THE_HUB = {"amazon_blitzer"}
NOT_IN_TFDS = {
    *("amazon_blitzer", "amazon_polarity", "anthropic_hh", "dream", "ethics_deontology"),
    *("ethics_justice", "ethics_utilitarianism", "ethics_virtue", "hh_rlhf_harmless"),
    *("hh_rlhf_helpful", "quail", "quartz", "rotten_tomatoes", "sciq", "sciq_with_support"),
    *("social_i_qa", "summarize_from_feedback", "twitter_sentiment"),
}
# Tasks with lists or records in their fields.
NOT_IN_CSV = {"dream", "hellaswag", "openbookqa", "quail", "quartz", "summarize_from_feedback"}


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def write(root, name, records, split="validation"):
    path = root / name / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def contains(texts, wanted):
    """Whether a text holds all that is wanted; of a pair, each text its own."""
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    if len(texts) == 2:
        return all(part in text for text, part in zip(texts, wanted, strict=True))
    return all(part.casefold() in texts[0].casefold() for part in wanted)


def test_all_tasks_are_registered():
    # They have tests of their own.
    elsewhere = {"digits", "digits_even", "chess_puzzles", "chess_pgn", "fashion_mnist"}
    assert set(ROWS) == set(TASKS) - elsewhere and len(ROWS) == 33
    for name in ROWS:
        task = get_task(name)
        assert task.name == name and task.kind in KINDS
        assert task.licence and task.description and task.fields
        assert (task.hub is None) == (name in NOT_ON_THE_HUB)
        assert (task.tfds is None) == (name in NOT_IN_TFDS)
        assert task.hub or task.tfds or "local files only" in task.description
        if task.hub:
            organisation, _, repository = task.hub.name.partition("/")
            assert organisation and repository
    assert "chance" in get_task("anthropic_hh").warning
    assert {n for n in ROWS if get_task(n).kind == "preference"} == {
        "hh_rlhf_helpful",
        "hh_rlhf_harmless",
        "summarize_from_feedback",
    }
    assert {n for n in ROWS if get_task(n).kind == "generation"} == {"gsm8k"}
    assert get_task("gsm8k_verification").folder == "gsm8k"


@pytest.mark.parametrize("name", list(ROWS))
def test_record_of_the_hub(name):
    row, task = ROWS[name], get_task(name)
    assert set(task.fields) <= set(row.record)
    candidates = task.expand(row.record, "here")
    assert len(candidates) == len(row.expected)
    for candidate, (wanted, label) in zip(candidates, row.expected, strict=True):
        assert contains(candidate.texts, wanted), (candidate.texts, wanted)
        assert all(text.endswith(row.ends) and text == text.strip() for text in candidate.texts)
        assert (candidate.label, candidate.group) == (label, row.group)
        assert len(candidate.texts) == task.num_texts
    assert len({c.text for c in candidates}) == len(candidates)
    if row.ends:  # what is asked comes last, and so is kept
        assert task.truncate == "start"
    for change in row.skipped:
        assert task.expand(row.record | change, "here") == []
    for change in row.unlabelled:
        found = task.expand(row.record | change, "here")
        assert found and {c.label for c in found} == {-1}
        assert {c.group for c in found} == {row.group}


@pytest.mark.parametrize("name", [name for name in ROWS if name not in NOT_IN_TFDS])
def test_record_of_tfds(name):
    row, origin, task = ROWS[name], get_task(name).tfds, get_task(name)
    assert (origin.convert is None) == (name not in ("anli_r2", "hellaswag", "openbookqa"))
    record = row.tfds or row.record
    if origin.convert:
        record = origin.convert(record)
        assert record == {key: row.record[key] for key in record}
    assert set(task.fields) <= set(record)
    assert task.expand(record, "here") == task.expand(row.record, "here")


def test_unlabelled_hellaswag_of_tfds():
    row, convert = ROWS["hellaswag"], get_task("hellaswag").tfds.convert
    assert convert(row.tfds | {"label": -1})["label"] == ""


@pytest.mark.parametrize("name", list(ROWS))
def test_nothing_but_the_answer_differs(name):
    """Without the answer, right and wrong items of a record are the same text."""
    row, task = ROWS[name], get_task(name)
    rest = set()
    for candidate in task.expand(row.record, "here"):
        if task.orders or name == "anthropic_hh":
            # The same content in another order; a reply is the answer itself.
            text = "".join(sorted("".join(candidate.texts)))
            rest.add(text if task.orders else candidate.texts[0].rpartition(":")[0])
        else:
            text, answer = candidate.texts[0], candidate.meta.get("answer", "")
            # The last step of a solution has the number, too.
            found = answer if name == "gsm8k_verification" else f": {answer}\n"
            rest.add(text.replace(found, "<answer>") if answer else text)
    assert len(rest) == 1


@pytest.mark.parametrize("name", list(ROWS))
def test_bad_records(name, tmp_path):
    row, task = ROWS[name], get_task(name)
    assert row.bad
    for change, message in row.bad:
        path = write(tmp_path, name, [row.record, row.record | change])
        with pytest.raises(InputError, match=rf"^{path}, line 2: .*{message}") as error:
            load(name, data_dir=str(tmp_path), empty="error")
        assert "\n" not in str(error.value)
    for key in task.fields:
        record = {k: v for k, v in row.record.items() if k != key}
        path = write(tmp_path, name, [row.record, record])
        with pytest.raises(InputError, match=rf"^{path}, line 2: field {key!r} is missing"):
            load(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", [name for name in ROWS if name not in NOT_IN_CSV])
def test_csv_is_as_good_as_json(name, tmp_path):
    """A CSV file has text in all fields."""
    row, task = ROWS[name], get_task(name)
    record = {key: row.record[key] for key in task.fields}
    (tmp_path / name).mkdir()
    path = tmp_path / name / "validation.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, task.fields)
        writer.writeheader()
        writer.writerow(record)
    found = load(name, data_dir=str(tmp_path)).documents
    path.unlink()
    write(tmp_path, name, [record])
    assert found == load(name, data_dir=str(tmp_path)).documents


def test_unlabelled_test_split_is_left_out(tmp_path):
    for name, row in ROWS.items():
        if row.unlabelled:
            write(tmp_path, name, [row.record], "validation")
            write(tmp_path, name, [row.record | row.unlabelled[0]] * 2, "test")
            assert list(load(name, data_dir=str(tmp_path)).documents) == ["validation"]


def test_cosmos_qa_where_no_answer_is_right():
    row, expand = ROWS["cosmos_qa"], get_task("cosmos_qa").expand
    drawn = Counter()
    for n in range(60):
        (item,) = expand(row.record | {"label": 0, "question": f"Why {n}?"}, "here")
        assert item.label == 0 and "None of" not in item.text
        drawn[item.meta["answer"]] += 1
    assert len(drawn) == 3 and min(drawn.values()) > 5  # 20 each, standard deviation 3.7
    assert all("None of" not in c.text for c in expand(row.record | {"label": -1}, "here"))


def test_two_classes_of_twitter_do_not_pass_unnoticed(tmp_path):
    records = [{"text": f"t {n}", "label": n % 2} for n in range(20)]
    write(tmp_path, "twitter_sentiment", records, "train")
    with pytest.raises(InputError, match="all 10 documents of the training split have label 0"):
        load("twitter_sentiment", data_dir=str(tmp_path))


def test_summary_of_an_article():
    row, task = ROWS["summarize_from_feedback"], get_task("summarize_from_feedback")
    info = {"id": "x", "post": None, "title": None, "article": "Rain fell."}
    found = task.expand(row.record | {"info": info, "choice": "1"}, "here")
    assert found[0].texts == (
        "Rain fell.\n\nSummary: Hat gone.",
        "Rain fell.\n\nSummary: Cats.",
    )
    assert {c.group for c in found} == {"Rain fell."}


def test_group_of_paws_and_hellaswag():
    paws, hellaswag = ROWS["paws"].record, ROWS["hellaswag"].record
    swapped = paws | {"sentence1": "A beats B .", "sentence2": "B is beaten by A ."}
    group = get_task("paws").expand
    assert group(swapped, "here")[0].group == group(paws, "here")[0].group
    without = {k: v for k, v in hellaswag.items() if k != "source_id"}
    assert get_task("hellaswag").expand(without, "here")[0].group == "A man climbs. he"


@pytest.mark.parametrize(
    ("number", "index", "zero_allowed"),
    [
        # number, index of the digit that changes, whether it may become zero
        ("7", 0, False),
        ("0", 0, False),
        ("72", 0, False),
        ("30", 0, False),
        ("500", 0, False),
        ("120", 1, False),
        ("144", 1, True),
        ("1,250", 2, True),
        ("1,200", 2, False),
        ("2.50", 2, False),
        ("0.25", 2, False),
        ("0.5", 2, False),
        ("0.00", 0, False),
        ("-15", 1, False),
        ("1000000", 0, False),
    ],
)
def test_corrupted_numbers_keep_their_shape(number, index, zero_allowed):
    plain = number.lstrip("-")
    steps = f"First 3.\nThen it is ${plain}, not {plain}9 or 9.{number[-1]}."
    seen = set()
    for key in range(3000):
        wrong_steps, wrong = corrupted(steps, number, key)
        seen.add(wrong[index])
        assert len(wrong) == len(number)
        assert wrong[:index] + wrong[index + 1 :] == number[:index] + number[index + 1 :]
        assert wrong_steps == steps.replace(f"${plain},", f"${wrong.lstrip('-')},")
    everything = set("0123456789" if zero_allowed else "123456789")
    assert seen == everything - {number[index]}


def test_corrupted_numbers_in_other_forms_and_lines():
    power, digit = change_of("1250", 5)
    assert power == 2 and digit != "2"
    steps, final = corrupted("It was 1250.\nNow 1,250.00 = 1250 but 12500, 0.1250.", "1250", 5)
    assert final == f"1{digit}50"
    assert steps == f"It was 1250.\nNow 1,{digit}50.00 = 1{digit}50 but 12500, 0.1250."
    assert corrupted("", "8", 1)[0] == ""
    # The draw depends on the question, not on the file or its order.
    expand, record = get_task("gsm8k_verification").expand, ROWS["gsm8k_verification"].record
    assert expand(record, "a") == expand(dict(reversed(record.items())), "b")
    assert expand(record, "a")[1].meta == {"answer": "8"}  # frozen


def test_final_numbers_in_several_forms():
    forms = {
        "1,200": "1200", "1,200.0": "1200", "3.50": "3.5", "007": "7", "-0": "0", "-.5": "-0.5",
        "100": "100", "1" + 40 * "0" + "3": "1" + 40 * "0" + "3",
    }  # fmt: skip
    for number, plain in forms.items():
        assert plain_number(number) == plain
        assert final_number(f"#### 5, so\n#### {number}") == plain
        assert final_number(f"It is ####${number}.") == plain
    assert [final_number(text) for text in ("", "It is 5.", "#### five", "### 5")] == [""] * 4


def test_answers_to_word_problems():
    row, task = ROWS["gsm8k"], get_task("gsm8k")
    (found,) = task.expand(row.record, "here")
    assert found.target == "So 2 + 2 = 4 apples.\n#### 4" and found.meta == {"answer": "4"}
    document = Document(id=1, text=found.text, target=found.target)
    assert task.is_correct(task.answer_in("Two each.\n#### 4.0"), document)
    assert not task.is_correct(task.answer_in("4"), document)
