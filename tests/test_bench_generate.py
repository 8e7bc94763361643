"""`w2s bench generate`: what it runs and records, its command line, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from w2s_jax import models, sharding
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.models import heads, network
from w2s_jax.perf import bench, data, generating, throughput, workloads

TIMES = {
    *("seconds", "prompts_per_second", "new_tokens_per_second", "prefill_seconds"),
    "step_seconds",
}
RECORD = TIMES | {
    *("bench", "model", "parameters", "dtype", "backend", "device_kind", "device_count"),
    *("versions", "prompts", "prompt_tokens", "new_tokens", "batch_size", "repeats"),
    *("compile_seconds", "peak_memory", "peak_memory_of"),
}


def job(**changes):
    model = dataclasses.replace(workloads.find_model("gpt-d8"), vocab_size=300, max_positions=64)
    return generating.Job(model, "float32", 3, 6, 4, **changes)


def test_what_is_timed_is_the_greedy_completion_of_each_prompt():
    """The tokens are those of an argmax of the whole text's logits, one token at a time."""
    small = job()
    config = small.model
    params = network.init_params(config, 0, sharding.make_mesh())
    # Larger weights, so that completions are more than repetitions of the last token.
    params = {**params, "blocks": jax.tree.map(lambda x: 6 * x, params["blocks"])}
    completer = generating.Completer(small, params)
    assert completer.run() > 0
    texts_NL, forward = small.prompts_NP(), jax.jit(models.forward, static_argnums=0)
    assert texts_NL.shape == (3, 6) and len(np.unique(texts_NL)) > 10
    for _ in range(small.new_tokens):
        padded_NL = np.pad(texts_NL, ((0, 0), (0, 10 - texts_NL.shape[1])))
        hidden_NLD = forward(config, params, padded_NL)[:, texts_NL.shape[1] - 1, None]
        logits_N1V = heads.language_model_logits(config, params, hidden_NLD)
        new_N = np.argmax(np.asarray(logits_N1V)[:, 0], axis=-1)
        texts_NL = np.concatenate([texts_NL, new_N[:, None].astype(np.int32)], axis=1)
    np.testing.assert_array_equal(completer.tokens_NT, texts_NL[:, 6:])
    assert len(np.unique(completer.tokens_NT)) > 3


def test_a_record_is_what_is_printed(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["--model=gpt-d8", "--prompt_tokens=5", "--new_tokens=1,3", "--documents=64"]
    assert main(["bench", "generate", *arguments, "--repeats=2", f"--json={path}"]) == 0
    out = capsys.readouterr().out
    single, record = json.loads(path.read_text())["records"]
    assert set(record) == set(single) == RECORD
    assert (record["bench"], record["model"], record["dtype"]) == ("generate", "gpt-d8", "bfloat16")
    assert (record["prompts"], record["batch_size"], record["repeats"]) == (64, 32, 2)
    assert (record["prompt_tokens"], record["new_tokens"]) == (5, 3)
    median = record["seconds"]["median"]
    assert record["prompts_per_second"] == pytest.approx(64 / median)
    assert record["new_tokens_per_second"] == pytest.approx(192 / median)
    assert f"{192 / median:,.0f}" in out and "gpt-d8" in out and "peer" not in out
    # Two batches of two steps after the prefill.
    steps = 4 * record["step_seconds"]
    assert record["prefill_seconds"] + steps == pytest.approx(
        max(median, record["prefill_seconds"])
    )
    assert single["step_seconds"] is None and "n/a" in out


def test_different_first_tokens_are_rejected_and_later_ones_counted():
    ours_NT = np.arange(12).reshape(3, 4)
    theirs_NT = ours_NT.copy()
    theirs_NT[1, 2:] = 0
    found = generating.agreement(job(), ours_NT, theirs_NT)
    assert found == {"same_first_tokens": 1.0, "same_tokens": pytest.approx(10 / 12)}
    theirs_NT[2, 0] = 0
    with pytest.raises(RuntimeError, match="computes something else: 67% of the first tokens"):
        generating.agreement(job(), ours_NT, theirs_NT)
    rounded = dataclasses.replace(job(), dtype="bfloat16")
    assert generating.agreement(rounded, ours_NT, theirs_NT)["same_first_tokens"] > 0.6


@pytest.mark.parametrize(
    ("what", "arguments", "parts"),
    [
        ("generate", ["--prompt_tokens=64,x"], ["--prompt_tokens", "64,x", "whole numbers"]),
        ("generate", ["--new_tokens=0"], ["--new_tokens", "'0'", "at least 1"]),
        ("generate", ["--new_tokens=8,"], ["--new_tokens", "separated by commas"]),
        ("generate", ["--prompt_tokens=64,1000"], ["1000", "--new_tokens=32", "1024 positions"]),
        ("generate", ["--model=bert-base-uncased"], ["bert", "is an encoder"]),
        ("generate", ["--model=gpt3"], ["--model", "'gpt2'"]),
        ("generate", ["--promt_tokens=64"], ["--promt_tokens=64", "'--prompt_tokens'"]),
        ("train", ["--new_tokens=8"], ["bench train", "--new_tokens works with generate and all"]),
    ],
)
def test_bad_values_are_one_line_before_anything_is_measured(
    capsys, monkeypatch, what, arguments, parts
):
    monkeypatch.setattr(generating, "measure", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(throughput, "measure", lambda *_, **__: pytest.fail("measured"))
    assert main(["bench", what, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("w2s: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_the_released_code_generates_nothing():
    with pytest.raises(errors.InputError, match="--peer=torch-released; allowed: torch"):
        job().check("torch-released")


@pytest.mark.parametrize("model", ["16m", "bert-base-uncased"])
def test_all_generates_briefly_and_only_with_decoders(monkeypatch, model):
    calls = []

    def measure(job, *, repeats, peer):
        calls.append((job.prompts, job.prompt_tokens, job.new_tokens, repeats, peer))
        return {"bench": "generate"}

    monkeypatch.setattr(generating, "measure", measure)
    monkeypatch.setattr(generating, "print_records", lambda *_: None)
    monkeypatch.setattr(data, "bench", lambda *_: [])
    for other in ("_compile", "_population", "_checkpoint", "_throughput"):
        monkeypatch.setattr(bench, other, lambda *_: [])
    records = bench.run("all", bench.Options(model=model), Console())
    assert calls == ([(32, 64, 32, 3, None)] if model == "16m" else [])
    assert len(records) == len(calls)
