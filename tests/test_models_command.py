"""The output of `w2s models`, and how quickly it comes."""

import json
import subprocess
import sys
import time

import pytest

from w2s_jax.cli.main import main
from w2s_jax.models import EMBEDDED_MODELS, ladders
from w2s_jax.models.families import FAMILIES


def run(capsys, *arguments):
    status = main(["models", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def rows(out):
    """First column -> the rest of its row, split; later tables win."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_the_list_has_every_family_model_and_ladder_on_one_line_each(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    found = rows(out)
    for name in (*FAMILIES, *EMBEDDED_MODELS, *ladders.KNOWN):
        assert name in found, name
    assert found["openai-community/gpt2"] == ["124.4M", "5e-5", "5e-4", "float32"]
    assert found["EleutherAI/pythia-12b"] == ["11.85B", "1e-5", "1e-4", "bfloat16"]
    assert found["gpt-d8"][-3:] == ["1e-3", "1e-2", "float32"]
    assert found["gpt_neox"] == ["GPTNeoXForCausalLM", "rope", "Pythia"]
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_model_is_shown_with_its_costs(capsys):
    status, out, _ = run(capsys, "pythia-70m@step3000")
    assert status == 0 and out.startswith("EleutherAI/pythia-70m\n")
    assert "70,426,624 (18,914,304 in blocks)" in out
    assert "by formula, not measured" in out and "step143000" in out
    full = next(line for line in out.splitlines() if line.startswith("full"))
    # 6 layers of 12 * 512 ** 2 weights; attention over 128.5 slots; training: three times that.
    forward = 6 * (2 * 12 * 512**2 + 4 * 512 * 128.5)
    assert full.split()[1:] == ["5e-5", "44.7M", f"{forward / 1e6:.1f}M", f"{3e-6 * forward:.1f}M"]
    # 70,426,624 float32 numbers; as many gradients, twice as many moments.
    # 8,192 tokens: 6 layers and one more hold the inputs of matrices and attention, two norms and
    # the scores of 8 heads over 256 slots twice; 6 layers keep their input.
    layer = 4 * (6 * 512 + 2 * 2048) + 4 * (4 * 512 + 2 * 8 * 256)
    activations = 8192 * (7 * layer + 6 * 4 * 512) / 2**30
    # The unembedding of a classifier, 50,304 times 512, is not trained.
    trained = 70_426_624 - 50_304 * 512
    total = (4 * 70_426_624 + 12 * trained) / 2**30 + activations
    wanted = ["0.26", "0.17", "0.33", f"{activations:.2f}", f"{total:.2f}"]
    assert rows(out)["full"] == wanted


def test_the_number_of_devices_follows_from_the_memory(capsys):
    _, out, _ = run(capsys, "Qwen/Qwen2.5-72B")
    total = rows(out)["full"][-1].replace(",", "")
    wanted = float(total) / (0.9 * 141)
    count = int(rows(out)["H200"][1])
    assert count / 2 < wanted <= count and count & (count - 1) == 0
    laptop = next(line for line in out.splitlines() if line.startswith("laptop"))
    assert laptop.split()[-4:] == ["no"] * 4
    _, out, _ = run(capsys, "gpt-d8")
    laptop = next(line for line in out.splitlines() if line.startswith("laptop"))
    assert laptop.split()[-8:] == ["1", "x"] * 4


def test_a_local_folder_is_read_from_its_config_json(capsys, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    hf = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps(hf))
    status, out, _ = run(capsys, str(folder))
    assert status == 0 and "family gpt2" in " ".join(out.split())
    # Embeddings 10 and 1024 rows of 8; 12 * 64 + 13 * 8 in the block; the last norm.
    assert f"{1034 * 8 + 12 * 64 + 13 * 8 + 16:,} ({12 * 64 + 13 * 8:,} in blocks)" in out


@pytest.mark.parametrize(
    "name,parts",
    [
        ("EleutherAI/pythia-71m", ["'EleutherAI/pythia-71m'", "'EleutherAI/pythia-70m'", "folder"]),
        ("gtp2", ["'gtp2'", "'openai-community/gpt2'"]),
        ("gpt-d33", ["'gpt-d33'", "'gpt-d32'"]),
        ("zzzzzzzz", ["'zzzzzzzz'", "listed by w2s models"]),
    ],
)
def test_unknown_models_are_refused_with_the_nearest_name(capsys, name, parts):
    status, _, err = run(capsys, name)
    assert status == 2 and err.count("\n") == 1 and err.startswith("w2s: ")
    for part in parts:
        assert part in err, err


def test_a_folder_that_is_not_supported_is_named(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    status, _, err = run(capsys, str(tmp_path))
    assert status == 2 and "config.json" in err and "'mamba'" in err
    (tmp_path / "config.json").write_text("[]")
    status, _, err = run(capsys, str(tmp_path))
    assert status == 2 and err.count("\n") == 1 and "config.json" in err
    assert run(capsys, "gpt2", "--verbos")[0] == 2


def test_the_command_is_fast_and_imports_no_jax():
    code = (
        "import sys\nfrom w2s_jax.cli import main as cli\n"
        "assert cli.main(['models']) == cli.main(['models', 'gpt2']) == 0\n"
        "assert not {'jax', 'flax', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - started < 4
