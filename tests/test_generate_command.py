"""`w2s generate`: what it prints and writes, against `models.generate`."""

import json

import jax
import numpy as np
import pytest
from refusals import error

from w2s_jax import models, sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.data.documents import stable_id
from w2s_jax.execution import generate
from w2s_jax.models import network
from w2s_jax.store import trees

TEXTS = ["the film", "a", "so very long"]


@pytest.fixture(scope="module")
def phase(tmp_path_factory):
    """The folder of a pretraining phase of the tiny model, with random parameters."""
    folder = tmp_path_factory.mktemp("phases") / "pretrain-0"
    config = testing.tiny_model()
    params = network.init_params(config, 0, sharding.make_mesh())
    # Random logits of more than one size, so that the best tokens differ.
    params = jax.tree.map(lambda x: 4 * x, params)
    folder.mkdir()
    trees.save_tree(folder / "checkpoints" / "final", {"backbone": params})
    record = {
        "kind": "pretrain",
        "spec": {"model": config.to_dict()},
        "trained": "full",
        "dtype": "float32",
        "base": {"seed": 0},
        "tokenizer": "bytes",
    }
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def test_a_file_of_prompts_gives_the_completions_of_the_model(phase, tmp_path, capsys):
    rows = [{"id": f"row {n}", "prompt": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["generate", f"--from={phase}", f"--prompts={tmp_path / 'prompts.jsonl'}"]
    options = ["--max_new_tokens=5", "--temperature=0.7", "--num_samples=2", "--seed=3"]
    assert main([*command, *options, f"--to={tmp_path / 'out.jsonl'}"]) == 0
    assert "6 completions of 3 prompts" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    config, params = models.load(phase)
    tokens, logprobs = models.generate(
        config,
        params,
        [[1, *(3 + byte for byte in text.encode())] for text in TEXTS],
        max_new_tokens=5,
        eos=2,
        temperature=0.7,
        num_samples=2,
        seed=3,
        ids=[stable_id("prompt", f"row {n}") for n in range(3)],
        return_logprobs=True,
    )
    expected = [
        {"id": f"row {n}", "prompt": text, "sample": sample}
        for n, text in enumerate(TEXTS)
        for sample in range(2)
    ]
    assert [{k: row[k] for k in ("id", "prompt", "sample")} for row in found] == expected
    for row, of_prompt in zip(found, [n for n in range(3) for _ in range(2)], strict=True):
        ids = tokens[of_prompt][row["sample"]]
        assert row["text"] == testing.TINY_TOKENIZER.decode(np.array(ids, np.int32))
        total = float(np.sum(logprobs[of_prompt][row["sample"]]))
        assert row["logprob"] == pytest.approx(total, abs=1e-5)


def test_the_samples_of_a_row_with_an_id_do_not_depend_on_its_place(phase):
    rows = [{"id": n, "prompt": text} for n, text in enumerate(TEXTS)]
    sampling = generate.Sampling(5, temperature=1.0)
    found = {row["id"]: row for row in generate.generate(str(phase), rows, sampling)}
    for row in generate.generate(str(phase), rows[::-1], sampling):
        assert row["text"] == found[row["id"]]["text"]


def test_a_prompt_is_printed_with_its_completion(phase, capsys):
    assert main(["generate", f"--from={phase}", "--prompt=the film", "--max_new_tokens=3"]) == 0
    (row,) = generate.generate(str(phase), [{"prompt": "the film"}], generate.Sampling(3))
    assert capsys.readouterr().out == f"the film{row['text']}\n"
    arguments = ["--prompt=the film", "--prompt=a plot", "--max_new_tokens=3"]
    assert main(["generate", f"--from={phase}", *arguments]) == 0
    first, second, _ = capsys.readouterr().out.split("\n---\n")
    assert first == f"the film{row['text']}" and second.startswith("a plot")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=a", "--temperature=-1"], "temperature"),
        (["--prompt=a", "--top_p=0"], "top_p"),
        (["--prompt=a", "--max_new_tokens=100"], "context"),
        (["--prompt=a", "--tokenizer=byte"], "--tokenizer"),
        (["--prompts=missing.jsonl"], "--prompts"),
        (["--prompt=a", "--to=missing/out.jsonl"], "--to"),
        (["--prompt=a", "--temprature=1"], "did you mean '--temperature'"),
    ],
)
def test_bad_input_is_one_line(phase, arguments, message, capsys):
    status = None
    try:
        status = main(["generate", f"--from={phase}", *arguments])
    except SystemExit as stop:
        status = stop.code
    found = capsys.readouterr().err
    assert status == 2 and message in found and found.count("\n") == 1


def test_rows_without_a_prompt_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert "line 2" in error(generate.read_prompts, path)
    path.write_text("\n")
    assert "no rows" in error(generate.read_prompts, path)
