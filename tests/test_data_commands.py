"""`w2s data` and `w2s bench data` against counts made by hand."""

import json
import re

import numpy as np
import pytest

from w2s_jax.cli.main import main
from w2s_jax.data import check
from w2s_jax.data.documents import Document
from w2s_jax.data.loading import load_task
from w2s_jax.data.tasks import TASKS


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def run(capsys, *arguments):
    status = main(["data", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A task without code, with a duplicate, a conflicting label and a leak."""
    train = [{"text": f"number {i}", "label": int(i < 6)} for i in range(10)]
    train += [{"text": "Number  3", "label": 1}, {"text": "number 9", "label": 1}]
    test = [{"text": "NUMBER 0", "label": 1}, {"text": "new", "label": 0}]
    write(tmp_path / "mine" / "train.jsonl", train)
    write(tmp_path / "mine" / "test.jsonl", test)
    return tmp_path


def test_facts_of_a_split(folder):
    documents = load_task("mine", data_dir=str(folder))
    train = check.split_facts(documents["train"], np.arange(12))
    assert (train.documents, train.positive, train.duplicates, train.conflicts) == (12, 8, 2, 1)
    assert (train.groups, train.largest_group) == (12, 1)
    (overlap,) = check.overlaps(documents)
    assert (overlap.first, overlap.second, overlap.texts, overlap.groups) == ("train", "test", 1, 0)
    grouped = [Document(id=i, text=str(i), group=f"g{i // 3}", soft_label=0.7) for i in range(7)]
    facts = check.split_facts(grouped, np.ones(7))
    assert (facts.groups, facts.largest_group, facts.positive) == (3, 3, 7)
    assert check.split_facts([Document(id=1, text="a")], np.ones(1)).positive is None


@pytest.mark.parametrize("seed", range(5))
def test_the_histogram_counts_every_document_once(seed):
    lengths = np.random.default_rng(seed).lognormal(3, 1, 500).astype(int) + 1
    rows = check.length_histogram(lengths)
    assert len(rows) <= 12 and rows[0][0] == lengths.min() and rows[-1][1] == lengths.max()
    for low, high, count in rows:
        assert count == np.sum((lengths >= low) & (lengths <= high))
    assert sum(count for _, _, count in rows) == 500
    assert check.length_histogram(np.full(9, 65)) == [(65, 65, 9)]


def test_check_prints_what_was_found(capsys, folder):
    status, out, _ = run(capsys, "check", "mine", f"--data_dir={folder}")
    assert status == 0 and f"from files, {folder}/mine" in out.replace("\n", "")
    assert re.search(r"train +12 +8 +0\.667 +12 +1 +2 +1", out)
    assert "train vs test: 1 duplicate texts; 0 train documents share a group with test" in out
    lengths = {
        split: re.search(rf"{split}: tokens.*longest (\d+)", out)[1] for split in ("train", "test")
    }
    assert lengths == {"train": "11", "test": "10"}  # "Number  3" and "NUMBER 0" between two tokens


def test_list_names_every_task(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    listed = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert set(TASKS) <= listed
    (sst2,) = (line for line in out.splitlines() if line.startswith("sst2 "))
    assert "classification" in sst2 and "stanfordnlp/sst2" in sst2 and "glue/sst2" in sst2
    assert all(TASKS[name].licence for name in TASKS)


def test_list_shows_the_fields_of_a_task(capsys, folder):
    for name, fields in (("boolq", "passage, question, answer"), ("sciq", TASKS["sciq"].fields)):
        status, out, _ = run(capsys, "list", name)
        fields = fields if isinstance(fields, str) else ", ".join(fields)
        assert status == 0 and re.search(rf"required fields +{fields} *$", out, re.M)
        assert f"<data_dir>/{name}/<split>.jsonl" in out
    assert "validation" in run(capsys, "list", "boolq")[1]
    status, out, _ = run(capsys, "list", "mine", f"--data_dir={folder}")
    assert status == 0 and re.search(r"required fields +text; label or soft_label *$", out, re.M)
    assert re.search(r"optional fields +group *$", out, re.M)


def test_an_unknown_task_is_answered_by_what_to_do(capsys):
    for action in ("list", "check", "show"):
        status, _, err = run(capsys, action, "scciq")
        assert status == 2 and "'sciq'" in err and "--data_dir" in err and "w2s data list" in err
        assert "twitter" not in err


def test_a_recipe_says_where_the_data_are(capsys, folder, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.task.data_dir = {str(folder)!r}\n"
        "    return config\n"
    )
    for action in ("check", "show", "list"):
        status, out, _ = run(capsys, action, "mine", f"--config={recipe}")
        assert status == 0 and "mine" in out
    write(tmp_path / "other" / "mine" / "train.jsonl", [{"text": "a", "label": n} for n in (0, 1)])
    _, out, _ = run(capsys, "check", "mine", f"--config={recipe}", f"--data_dir={tmp_path}/other")
    assert "other" in out.replace("\n", "")


def test_check_names_files(capsys, folder):
    (folder / "mine" / "challenge.tsv").write_text("text\n")
    (folder / "mine" / "test.jsonl").rename(folder / "mine" / "DEV.jsonl")
    _, out, _ = run(capsys, "check", "mine", f"--data_dir={folder}")
    assert "validation: DEV.jsonl" in out and "unused: challenge.tsv" in out


def test_check_says_what_a_run_trains_on(capsys, folder):
    _, out, _ = run(capsys, "check", "mine", f"--data_dir={folder}")
    assert "train on" not in out
    (folder / "mine" / "train.jsonl").rename(folder / "mine" / "training.jsonl")
    status, out, _ = run(capsys, "check", "mine", f"--data_dir={folder}")
    out = " ".join(out.split())
    assert status == 0 and "note: a run would be refused: task.train_split: " in out
    assert "--config.task.train_split=test" in out
    row = {"passage": "p", "question": "q", "answer": True}
    write(folder / "boolq" / "validation.jsonl", [row, row | {"answer": False}])
    _, out, _ = run(capsys, "check", "boolq", f"--data_dir={folder}")
    assert "note: runs train on validation.jsonl" in " ".join(out.split())


def test_check_follows_the_fields_of_a_recipe(capsys, folder, tmp_path):
    (folder / "mine" / "train.jsonl").rename(folder / "mine" / "dev.jsonl")
    with (folder / "mine" / "dev.jsonl").open("a") as file:
        file.write(json.dumps({"text": "", "label": 1}) + "\n")
    text = (
        "from w2s_jax.config import default_config\ndef get_config():\n"
        f"    c = default_config()\n    c.task.data_dir = {str(folder)!r}\n"
        "    c.task.empty, c.task.train_split = 'skip', 'validation'\n    return c\n"
    )
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    status, out, _ = run(capsys, "check", "mine", f"--config={recipe}")
    assert status == 0 and "note: validation: skipped 1 record with an empty text" in out
    assert "note: runs train on dev.jsonl" in out
    status, _, err = run(capsys, "check", "mine", f"--data_dir={folder}")
    assert status == 2 and "task.empty='skip'" in err


def test_show_prints_documents_as_the_model_sees_them(capsys, folder):
    status, out, _ = run(capsys, "show", "mine", "--n=2", f"--data_dir={folder}")
    documents = {d.id: d for d in load_task("mine", data_dir=str(folder))["train"]}
    shown = [int(n) for n in re.findall(r"id (\d+)", out)]
    assert status == 0 and len(shown) == 2
    for id_ in shown:
        document = documents[id_]
        assert f"id {id_}, label {document.label}" in out
        assert f"({len(document.text) + 2} tokens) [BOS]{document.text}[EOS]" in out
    _, out, _ = run(capsys, "show", "mine", "--n=1", "--max_length=6", f"--data_dir={folder}")
    assert re.search(r"\(6 tokens\) \[BOS\][nN]umb\[EOS\]", out)
    pairs = [{"text_a": f"a{i}", "text_b": f"b{i}", "label": i % 2} for i in range(4)]
    write(folder / "pairs" / "train.jsonl", pairs)
    _, out, _ = run(capsys, "show", "pairs", "--n=1", f"--data_dir={folder}")
    assert re.search(r"\(text 1, 4 tokens\) \[BOS\]a\d", out)
    assert re.search(r"\(text 2, 4 tokens\) \[BOS\]b\d", out)
    _, out, _ = run(capsys, "show", "digits_even", "--n=1", "--split=pretrain")
    assert re.search(r"\(66 tokens\) 1( \d+){65}$", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "sciqq"], r"task\.name: unknown value 'sciqq' \(did you mean 'sciq'\?\)"),
        (["show", "digits_even", "--split=tran"], r"--split: unknown value 'tran' .*'train'"),
        (["show", "digits_even", "--n=0"], "--n: 0; must be at least 1"),
        (["check", "digits_even", "--source=file"], r"task\.source: unknown value 'file'"),
        (["check", "digits_even", "--sed=3"], "unknown argument"),
        (["prepare", "digits_even", "--to=x"], "digits_even"),
    ],
)
def test_bad_arguments_are_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2 and err.count("\n") == 1 and "label" not in out
    assert re.search(message, err), err
    assert not list(tmp_path.iterdir())


def test_prepare_and_read_back(capsys, folder, tmp_path):
    to = tmp_path / "prepared"
    (folder / "mine" / "README.md").write_text("about")
    status, out, _ = run(capsys, "prepare", "mine", f"--to={to}", f"--data_dir={folder}")
    assert status == 0 and "train" in out and "12" in out and "unused: README.md" in out
    assert load_task("mine", data_dir=str(to)) == load_task("mine", data_dir=str(folder))
    status, _, err = run(capsys, "prepare", "mine", f"--to={to}", f"--data_dir={folder}")
    assert status == 2 and err.count("\n") == 1 and "mine" in err


def test_bench_data_writes_what_it_prints(capsys, tmp_path, monkeypatch):
    from w2s_jax.perf import data

    monkeypatch.setattr(data, "EPOCH_DOCUMENTS", 640)
    monkeypatch.setattr(data, "MANY_DOCUMENTS", 960)
    monkeypatch.setattr(data, "TEXTS", 50)
    path = tmp_path / "bench.json"
    assert main(["bench", "data", f"--json={path}"]) == 0
    out, _ = capsys.readouterr()
    records = json.loads(path.read_text())["records"]
    packed = [r for r in records if r["what"] == "pack"]
    assert [(r["mix"], r["documents"]) for r in packed] == [
        ("short", 640), ("long", 640), ("short", 960), ("long", 960),
    ]  # fmt: skip
    for record in packed:
        assert f"{record['real_token_share']:.1%}" in out
        share, padded = record["real_token_share"], record["share_when_padding"]
        assert padded < record["share_of_one_shape"] <= record["bound_of_one_shape"] <= 1
        assert record["share_of_one_shape"] <= share + 1e-9
        assert record["documents_per_second"] > 0
    assert {r["tokenizer"] for r in records if r["what"] == "tokenize"} == {
        "bytes", "BPE, in batches", "BPE, one by one",
    }  # fmt: skip
    bpe = [
        r["tokens_per_second"] * r["seconds"]
        for r in records
        if r.get("tokenizer", "")[:3] == "BPE"
    ]
    assert bpe[0] == pytest.approx(bpe[1])
    with pytest.raises(SystemExit):
        main(["bench", "dta"])


def test_bench_data_of_a_config(capsys, tmp_path):
    from w2s_jax import testing
    from w2s_jax.perf import data

    config = testing.tiny_config(testing.write_tiny_task(tmp_path))
    packed, tokenized = data._config_records(config)
    assert [r["mix"] for r in packed] == ["tiny slice1", "tiny slice2"]
    assert [r["documents"] for r in packed] == [80, 80]
    assert tokenized[0]["documents"] == 160


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 0.5}, r"line 13: field 'label': 0\.5; allowed: an integer"),
        ({"label": 1}, r"line 13: field 'text' is missing"),
    ],
)
def test_bad_records_are_not_prepared(capsys, folder, tmp_path, row, message):
    with (folder / "mine" / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    to = tmp_path / "prepared"
    status, _, err = run(capsys, "prepare", "mine", f"--to={to}", f"--data_dir={folder}")
    assert status == 2 and re.search(message, err) and not to.exists()


def test_show_and_check_of_prompts_and_targets(capsys, tmp_path):
    rows = [{"prompt": f"say {i}", "target": "12345"[: 1 + i % 5]} for i in range(20)]
    rows.append({"prompt": "say  0", "target": "no"})
    write(tmp_path / "say" / "train.jsonl", rows)
    status, out, _ = run(capsys, "show", "say", "--n=1", f"--data_dir={tmp_path}")
    shown = re.search(
        r"\((prompt), (\d+) tokens\) \[BOS\](.*)\n\((target), (\d+) tokens\) (.*)\n", out
    )
    assert status == 0 and "no label" not in out and shown[6].endswith("[EOS]")
    row = {"prompt": shown[3], "target": shown[6].removesuffix("[EOS]")}
    assert row in rows
    assert (int(shown[2]), int(shown[5])) == (1 + len(row["prompt"]), 1 + len(row["target"]))
    status, out, _ = run(capsys, "check", "say", f"--data_dir={tmp_path}")
    assert status == 0 and "label 1" not in out and "prompts with different targets" in out
    # documents, groups, the largest group, duplicates, prompts with different targets
    assert re.search(r"train +21 +21 +1 +1 +1\n", out)
    assert "train: tokens (bytes) per target, mean 4.0, median 4, longest 6" in out
    longest = max(2 + len(r["prompt"]) + len(r["target"]) for r in rows)
    assert f"longest {longest}\n" in out
    status, out, _ = run(capsys, "list", "say", f"--data_dir={tmp_path}")
    assert status == 0 and re.search(r"required fields +prompt, target *\n", out)
    status, out, err = run(
        capsys, "show", "say", f"--data_dir={tmp_path}", "--max_length=4", "--n=99"
    )
    assert status == 2 and "which leave no room for its prompt" in err and err.count("\n") == 1
