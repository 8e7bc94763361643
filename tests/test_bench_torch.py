"""The PyTorch peers compute the same as we do and follow their protocol (extra `torch`)."""

import dataclasses
import functools
import io
import json

import jax
import numpy as np
import pytest

from w2s_jax import sharding
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.perf import generating, peer, programs, throughput, workloads

torch = pytest.importorskip("torch")

from w2s_jax.perf import torch_generation, torch_gpt2, torch_peer, torch_programs  # noqa: E402


@functools.cache
def make(bench="train", dtype="float32", loss="xent"):
    """Return a workload and our program, which has run once."""
    model = dataclasses.replace(workloads.find_model("gpt-d32"), vocab_size=300, max_positions=128)
    workload = workloads.mix_workload(model, "short", dtype=dtype, loss=loss, documents=96)
    mesh = sharding.mesh_of((1, 1, 1))
    program = (programs.training if bench == "train" else programs.labelling)(workload, mesh)
    program.run()
    return workload, program


@pytest.fixture
def handed_over(tmp_path):
    def hand(bench, workload, program, which="torch"):
        path = tmp_path / "job.npz"
        peer.write_job(path, bench, which, workload, program)
        return torch_peer.read_job(str(path))

    return hand


VARIANTS = [
    torch_programs.Variant("packed", 1, "float32"),
    torch_programs.Variant("packed", 4, "float32"),
    torch_programs.Variant("padded", 1, "float32"),
    torch_programs.Variant("padded", 4, "float32"),
    torch_programs.Variant("packed", 4, "manual"),
    torch_programs.Variant("padded", 2, "manual"),
    torch_programs.Variant("packed", 2, "autocast"),
    torch_programs.Variant("packed", 2, "float32", adam="foreach"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_first_loss_and_gradient_norm_match(handed_over, variant):
    dtype = "float32" if variant.precision == "float32" else "bfloat16"
    workload, program = make(dtype=dtype)
    trainer = torch_programs.Trainer(handed_over("train", workload, program), variant)
    loss = trainer.loss(*trainer.batches[0], 0.0)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in trainer.weights.parameters()]).norm().item()
    limit = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]
    assert (loss.item(), norm) == pytest.approx(tuple(program.outputs[0][0]), rel=limit)


@pytest.mark.parametrize("which", ["torch", "torch-released"])
@pytest.mark.parametrize("loss", ["xent", "confidence"])
def test_training_losses_match(handed_over, which, loss):
    workload, program = make(loss=loss)
    job = handed_over("train", workload, program, which)
    if which == "torch":
        trainer = torch_programs.Trainer(job, torch_programs.Variant("packed", 2, "float32"))
    else:
        trainer = torch_programs.ReleasedTrainer(job)
    _, losses_S = trainer.run()
    assert len(losses_S) == 3
    np.testing.assert_allclose(losses_S, program.outputs[0][:, 0], rtol=2e-5)


@pytest.mark.parametrize(
    ("which", "dtype"),
    [("torch", "float32"), ("torch", "bfloat16"), ("torch-released", "float32")],
)
def test_labels_match(handed_over, which, dtype):
    workload, program = make("label", dtype)
    job = handed_over("label", workload, program, which)
    if which == "torch":
        precision = "float32" if dtype == "float32" else "manual"
        labeller = torch_programs.Labeller(job, torch_programs.Variant("packed", 16, precision))
    else:
        labeller = torch_programs.ReleasedLabeller(job)
    _, logits_NC = labeller.run()
    (ours_NC,) = program.outputs
    limit = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(logits_NC, ours_NC, atol=limit * np.abs(ours_NC).max())


def test_nested_attention_matches_where_it_runs():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, n) for n in (5, 1, 9, 9)]
    qkv = torch.from_numpy(rng.standard_normal((24, 3 * 32)).astype(np.float32))
    nested = torch_gpt2.make_batch(documents, "nested", 1, "cpu")
    groups = torch_gpt2.make_batch(documents, "packed", 2, "cpu")
    expected = torch_gpt2._attention(qkv, groups, 4)
    try:
        found = torch_gpt2._attention(qkv, nested, 4)
    except (RuntimeError, NotImplementedError):
        pytest.skip("this build of PyTorch has no kernel for nested attention")
    torch.testing.assert_close(found, expected)


def test_the_fastest_variant_has_the_shortest_trial(handed_over, monkeypatch):
    workload, program = make(dtype="bfloat16")
    job = handed_over("train", workload, program)
    times = {"packed 2, manual, fused": 1.0, "packed 2, manual, foreach": 0.5}

    def tried(make, variant, trials):
        trials[variant.name] = times.get(variant.name, 2.0)
        return trials[variant.name]

    monkeypatch.setattr(torch_programs, "_trial_seconds", tried)
    _, best, trials = torch_programs.fastest_variant(job)
    assert best == torch_programs.Variant("packed", 2, "manual", "foreach")
    assert {"packed 1", "padded 8", "nested 1"} <= {name.split(",")[0] for name in trials}
    assert any("autocast" in name for name in trials)


def test_the_child_replies_with_one_line_per_request(tmp_path):
    workload, program = make()
    peer.write_job(tmp_path / "job.npz", "train", "torch-released", workload, program)
    requests = [
        {"command": "prepare", "job": str(tmp_path / "job.npz")},
        {"command": "run"},
        {"command": "outputs", "to": str(tmp_path / "out.npy")},
    ]
    replies = io.StringIO()
    torch_peer.serve(io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), replies)
    prepared, run, outputs = map(json.loads, replies.getvalue().splitlines())
    assert prepared["variant"] == "minibatch 1, float32" and prepared["torch"]
    assert run["seconds"] > 0 and outputs["peak_memory"] > 1e7
    assert np.load(tmp_path / "out.npy").shape == (3,)


def test_a_peer_that_computes_something_else_is_rejected():
    workload, program = make()

    class Wrong:
        def outputs(self):
            return program.outputs[0][:, 0] + 0.1, 0

    with pytest.raises(RuntimeError, match="computes something else"):
        throughput._agreement("train", workload, program, Wrong())


def test_models_without_a_peer_are_rejected():
    for name in ("rotary-d64", "facebook/opt-125m", "EleutherAI/pythia-70m", "bert-base-uncased"):
        workload = workloads.mix_workload(workloads.find_model(name), "short", dtype="float32")
        with pytest.raises(errors.InputError, match="does not have GPT-2's architecture"):
            peer.check_workload("torch", workload)


def test_a_failing_child_is_reported_with_its_last_line(tmp_path):
    workload, program = make()
    broken = dataclasses.replace(program, params={"head": program.params["head"]})
    with (
        pytest.raises(RuntimeError, match="--peer=torch: the peer's process failed: KeyError"),
        peer.Peer("train", "torch", workload, broken),
    ):
        pass


def test_bench_with_a_peer_writes_a_ratio(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["--model=gpt-d8", "--mix=short", "--documents=32", "--repeats=2"]
    peers = ["--peer=torch-released", "--dtype=float32", f"--json={path}"]
    assert main(["bench", "train", *arguments, *peers]) == 0
    out = capsys.readouterr().out
    (record,) = json.loads(path.read_text())["records"]
    spread = record["ratio_spread"]
    assert spread["min"] <= record["ratio"] <= spread["max"]
    assert f"{record['ratio']:.2f} (" in out
    assert record["peer"]["name"] == "torch-released" and record["peer"]["dtype"] == "float32"
    assert record["peer"]["first_loss_difference"] < 1e-4


def generation_job(dtype, folder):
    """Return a small job of generation, our tokens, and the job as the peer reads it."""
    small = dataclasses.replace(workloads.find_model("gpt-d8"), vocab_size=300, max_positions=64)
    job = generating.Job(small, dtype, 33, 6, 5)
    params = generating.random_params(job)
    # Larger weights, so that completions are more than repetitions of the last token.
    params = {**params, "blocks": jax.tree.map(lambda x: 6 * x, params["blocks"])}
    completer = generating.Completer(job, params)
    completer.run()
    generating.write_job(folder, job, params)
    return job, completer.tokens_NT, torch_generation.read_job(folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_completions_are_those_of_transformers(tmp_path, attention):
    _, ours_NT, handed = generation_job("float32", tmp_path)
    program = torch_generation.Completer(handed, torch_generation.Variant("float32", attention))
    seconds, theirs_NT = program.run()
    np.testing.assert_array_equal(ours_NT, theirs_NT)
    assert len(np.unique(theirs_NT)) > 20 and seconds > 0
    np.testing.assert_array_equal(program.run(2)[1], theirs_NT[:, :2])


def test_weights_are_rounded_alike_and_the_fastest_variant_generates(tmp_path, monkeypatch):
    job, ours_NT, handed = generation_job("bfloat16", tmp_path)
    times = {"bfloat16, sdpa": 2.0, "float32, sdpa": 1.0, "float32, eager": 3.0}

    def tried(_, variant, trials):
        trials[variant.name] = times[variant.name]
        return trials[variant.name]

    monkeypatch.setattr(torch_generation, "_try", tried)
    program, variant, trials = torch_generation.make_program(handed)
    assert (variant, trials) == ("float32, sdpa", times)
    found = generating.agreement(job, ours_NT, program.run()[1])
    # On CPUs, ours rounds the weights only, like this variant.
    assert found["same_tokens"] > 0.9


def test_bench_generate_with_a_peer_writes_a_ratio(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["--model=gpt-d8", "--prompt_tokens=5", "--new_tokens=3", "--repeats=2"]
    assert main(["bench", "generate", *arguments, "--peer=torch", f"--json={path}"]) == 0
    out = capsys.readouterr().out
    (record,) = json.loads(path.read_text())["records"]
    spread, other = record["ratio_spread"], record["peer"]
    assert spread["min"] <= record["ratio"] <= spread["max"]
    assert f"{record['ratio']:.2f} (" in out and other["variant"] in out
    assert other["name"] == "torch" and {"bfloat16, sdpa", "float32, sdpa"} < set(other["trials"])
    assert other["variant"] in other["trials"] and other["same_first_tokens"] >= 0.5
    assert other["new_tokens_per_second"] == pytest.approx(96 / other["seconds"]["median"])
    assert other["prefill_seconds"] > 0
