"""Tokenizers against `transformers` and Python's own UTF-8, and the cache against a spy."""

import gzip
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers as tk

from w2s_jax.core.errors import InputError
from w2s_jax.data import tokenizer_files, tokenizers
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenizers import ByteTokenizer, load_tokenizer

TEXTS = [
    "",
    " ",
    "0",
    "1",
    "  two  spaces ",
    "The quick brown fox, 10 lazy dogs.",
    "naïve café",
    "combining e\u0301 and n\u0303",
    "日本語のテキスト",
    "family 👩‍👩‍👧 and 🙂🙃 end",
    "مرحبا",
    "line\nbreak\t\x00\x01",
    "word " * 20_000,
]
CORPUS = [*TEXTS[:-1], "the quick brown fox jumps over the lazy dog 0 1", "ab abc bc b"] * 3
SPELLINGS = "a <|endoftext|> b </s> <s> c <unk> [SEP] [CLS] <|pad|>"
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]


def save(backend, folder, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def byte_level(special):
    """In the way of GPT-2."""
    backend = tk.Tokenizer(tk.models.BPE())
    backend.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        tk.trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def word_piece():
    """In the way of BERT."""
    backend = tk.Tokenizer(tk.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = tk.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tk.decoders.WordPiece()
    trainer = tk.trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=BERT_SPECIALS, show_progress=False
    )
    backend.train_from_iterator([*CORPUS, SPELLINGS], trainer)
    backend.post_processor = tk.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def beginning_token(backend):
    backend.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return backend


def unigram():
    """In the way of SentencePiece, with the pieces of special tokens in the model itself."""
    backend = tk.Tokenizer(tk.models.Unigram())
    backend.pre_tokenizer = tk.pre_tokenizers.Metaspace()
    backend.decoder = tk.decoders.Metaspace()
    trainer = tk.trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=LLAMA_SPECIALS,
        unk_token="<unk>",
        initial_alphabet=list("<>/|[]_spSEPCLunkdoftx0123"),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return beginning_token(backend)


def byte_fallback():
    """In the way of Llama 2: pieces, and bytes for the characters that are in none."""
    pieces = [*LLAMA_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(i) for i in range(0x21, 0x7F)]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "x"), ("<", "/"), ("s", ">")]
    # Some conversions make merges that end in a special token.
    merges += [("</", "s>"), ("<", "s>")]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = tk.Tokenizer(
        tk.models.BPE(
            vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.pre_tokenizer = tk.pre_tokenizers.Metaspace(split=False)
    backend.decoder = tk.decoders.Sequence(
        [
            tk.decoders.Replace("▁", " "),
            tk.decoders.ByteFallback(),
            tk.decoders.Fuse(),
            tk.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(LLAMA_SPECIALS)
    return beginning_token(backend)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    end = "<|endoftext|>"
    gpt2 = byte_level([end])
    gpt2.enable_truncation(3)
    gpt2.enable_padding(length=8, pad_token=end)
    save(gpt2, root / "gpt2", generic | {"bos_token": end, "eos_token": end, "unk_token": end})
    save(gpt2, root / "gpt2_class", {"tokenizer_class": "GPT2Tokenizer"})
    save(gpt2, root / "bare")
    bert = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    save(word_piece(), root / "bert", generic | bert)
    save(unigram(), root / "unigram", generic | named)
    save(byte_fallback(), root / "llama", generic | named)
    save(byte_fallback(), root / "llama_class", {"tokenizer_class": "LlamaTokenizer"} | named)
    return root


KINDS = ("gpt2", "gpt2_class", "bare", "bert", "unigram", "llama", "llama_class")


def auto(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def split(tokens_T, lengths_N):
    assert (tokens_T.dtype, lengths_N.dtype) == (np.int32, np.int64)
    assert lengths_N.sum() == len(tokens_T)
    return [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_N)[:-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers(folders, kind):
    tokenizer, truth = load_tokenizer(str(folders / kind)), auto(folders / kind)
    expected = [truth(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert split(*tokenizer.encode_batch(TEXTS)) == expected
    whole = truth("0 a")["input_ids"]
    middle = truth("0 a", add_special_tokens=False)["input_ids"]
    assert [*tokenizer.prefix, *middle, *tokenizer.suffix] == whole
    assert tokenizer.vocab_size == max(truth.get_vocab().values()) + 1
    assert len(split(*tokenizer.encode_batch(["", ""]))) == 2
    assert [len(x) for x in tokenizer.encode_batch([])] == [0, 0]


def test_special_tokens_and_labels_of_each_kind(folders):
    def facts(kind):
        t = load_tokenizer(str(folders / kind))
        vocab = auto(folders / kind).get_vocab()
        assert t.label_tokens == (vocab["0"], vocab["1"])
        return t.prefix, t.suffix, t.end_of_text

    assert facts("gpt2") == facts("gpt2_class") == facts("bare") == ((), (), 0)
    assert facts("bert") == ((2,), (3,), 3)
    assert facts("unigram") == facts("llama") == facts("llama_class") == ((1,), (), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_cannot_spell_special_tokens(folders, kind):
    tokenizer, truth = load_tokenizer(str(folders / kind)), auto(folders / kind)
    texts = [SPELLINGS, *SPELLINGS.split(), "</s>" * 3]
    specials = set(truth.all_special_ids)
    if kind == "bert":
        specials.remove(truth.unk_token_id)  # here it stands for characters, and nothing is spelt
    for text, tokens in zip(texts, split(*tokenizer.encode_batch(texts)), strict=True):
        assert tokens and specials.isdisjoint(tokens)
        if kind != "bert":
            assert truth.decode(tokens).strip() == text
    if kind.startswith("gpt2"):
        expected = truth(SPELLINGS, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode_batch([SPELLINGS])[0].tolist() == expected


def test_special_tokens_that_are_words_of_the_vocabulary():
    vocab = {"[UNK]": 0, "</s>": 1, "a": 2, ".": 3, "0": 4, "1": 5}

    def encode(special, text):
        backend = tk.Tokenizer(tk.models.WordLevel(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
        spec = json.loads(backend.to_str())
        spec = tokenizer_files.without_specials(spec, special)
        return tk.Tokenizer.from_str(json.dumps(spec)).encode(text).ids

    # A full stop that a tokenizer has made its end of text is still a full stop in a text.
    assert encode({"</s>", "."}, "a </s> . 0") == [2, 0, 3, 4]
    assert encode(set(), "a </s> . 0") == [2, 1, 3, 4]


def test_a_special_token_of_one_character_is_text_in_a_text(tmp_path):
    backend = byte_level(["<|endoftext|>"])
    expected = backend.encode("a\nb").ids
    backend.add_special_tokens(["\n"])
    assert backend.encode("a\nb").ids != expected
    save(backend, tmp_path)
    assert load_tokenizer(str(tmp_path)).encode_batch(["a\nb"])[0].tolist() == expected


def test_added_tokens_that_are_not_special_stay(tmp_path):
    backend = byte_level(["<|endoftext|>"])
    backend.add_tokens(["<pause>"])
    backend.add_special_tokens(["<|last|>"])
    save(backend, tmp_path)
    size = backend.get_vocab_size()
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.vocab_size == size
    tokens = tokenizer.encode_batch(["a<pause>b<|last|>"])[0].tolist()
    assert size - 2 in tokens and size - 1 not in tokens
    # But it is special if the configuration gives it the part of a special token.
    save(backend, tmp_path, {"tokenizer_class": "TokenizersBackend", "eos_token": "<pause>"})
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.end_of_text == size - 2
    assert size - 2 not in tokenizer.encode_batch(["a<pause>b"])[0]


def test_an_id_0_at_the_end_is_a_token(tmp_path):
    backend = tk.Tokenizer(tk.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.enable_padding(pad_id=0, pad_token="a", length=7)
    backend.enable_truncation(2)
    save(backend, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokens_T, lengths_N = tokenizer.encode_batch(["ba", "aaa", "z", "b"])
    assert tokens_T.tolist() == [1, 0, 0, 0, 0, 1] and lengths_N.tolist() == [2, 3, 0, 1]
    assert tokenizer.end_of_text is None
    with pytest.raises(InputError, match=r"task\.tokenizer: .* no single token for '0'"):
        _ = tokenizer.label_tokens


def test_lone_surrogates_and_texts_without_tokens(folders):
    tokenizer = load_tokenizer(str(folders / "gpt2"))
    given = split(*tokenizer.encode_batch(["\ud800 x", "\ud83d\ude42", "y\udfff"]))
    assert given == split(*tokenizer.encode_batch(["\ufffd x", "🙂", "y\ufffd"]))
    bert = load_tokenizer(str(folders / "bert"))
    assert bert.encode_batch(["\u200b \n", "a", "  "])[1].tolist() == [0, 1, 0]


def test_batches_do_not_show(folders, monkeypatch):
    tokenizer = load_tokenizer(str(folders / "gpt2"))
    texts = [f"{i} " * (i % 7) for i in range(50)]
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr(tokenizers, "_BATCH_TEXTS", 8)
    monkeypatch.setattr(tokenizers, "_BATCH_CHARACTERS", 50)
    sizes = [(len(b), sum(map(len, b))) for b in tokenizers._batches(texts)]
    assert max(n for n, _ in sizes) == 8 and all(c <= 50 for _, c in sizes) and len(sizes) > 7
    for a, b in zip(whole, tokenizer.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["gpt2", "bare", "llama", "llama_class", "bert"])
def test_cut_never_splits_a_character(folders, kind):
    tokenizer, truth = load_tokenizer(str(folders / kind)), auto(folders / kind)
    text = "aé日🙂 naïve 👩‍👩‍👧 ж"
    tokens_L, _ = tokenizer.encode_batch([text])
    whole = [n for n in range(len(tokens_L) + 1) if "\ufffd" not in truth.decode(tokens_L[:n])]
    assert (len(whole) == len(tokens_L) + 1) == (kind == "bert")
    for end in range(len(tokens_L) + 1):
        assert tokenizer.cut(tokens_L, end) == max(n for n in whole if n <= end)


def test_bytes_are_utf8():
    tokenizer = load_tokenizer("bytes")
    assert isinstance(tokenizer, ByteTokenizer)
    texts = [*TEXTS, "\ud800 alone"]
    expected = [[3 + b for b in text.encode("utf-8", "surrogatepass")] for text in texts]
    assert split(*tokenizer.encode_batch(texts)) == expected
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.end_of_text) == ((1,), (2,), 2)
    assert tokenizer.encode_batch(["01"])[0].tolist() == [*tokenizer.label_tokens]
    assert tokenizer.vocab_size == 259 and tokenizer.name == "bytes"
    tokens_L, _ = tokenizer.encode_batch(["é🙂a"])
    assert [tokenizer.cut(tokens_L, end) for end in range(8)] == [0, 0, 2, 2, 2, 2, 6, 7]


def test_digest_sees_what_decides_the_tokens_and_nothing_else(tmp_path, folders):
    def digest(change=lambda spec: None, config=None):
        spec = json.loads((folders / "llama/tokenizer.json").read_text())
        change(spec)
        folder = tmp_path / "changing"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | (
            config or {}
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return load_tokenizer(str(folder)).digest

    truncation = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    same = [
        digest(),
        digest(lambda spec: spec.update(truncation=truncation)),
        digest(config={"model_max_length": 7}),
    ]
    assert len(set(same)) == 1 and len(same[0]) == 64
    others = [
        digest(lambda spec: spec["model"]["merges"].reverse()),
        digest(lambda spec: spec["model"]["merges"].pop()),
        digest(lambda spec: spec.update(post_processor=None)),
        digest(lambda spec: spec["pre_tokenizer"].update(prepend_scheme="never")),
        digest(config={"eos_token": "<s>"}),
    ]
    assert len({same[0], *others}) == 6


def test_dropout_is_off(tmp_path, folders):
    spec = json.loads((folders / "bare/tokenizer.json").read_text())
    spec["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    expected = load_tokenizer(str(folders / "bare")).encode_batch(TEXTS)[0]
    for _ in range(3):
        given = load_tokenizer(str(tmp_path)).encode_batch(TEXTS)[0]
        np.testing.assert_array_equal(given, expected)


def refusal(source):
    with pytest.raises(InputError) as caught:
        load_tokenizer(str(source))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("task.tokenizer: ")
    assert repr(str(source)) in message and "allowed: bytes, chess_board, a folder" in message
    return message


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, folders, monkeypatch):
    for name in ("byte", "Bytes", "bites"):
        assert "did you mean 'bytes'?" in refusal(name)
    for name in ("./nowhere", "/nowhere/tokenizer.json", "a/b/c", "", "~nobody/x", "tokens.json"):
        assert "no such file or folder" in refusal(name)
    files = {
        "empty": {},
        "broken": {"tokenizer.json": '{"model":'},
        "broken_too": {"tokenizer.json": '{"model":', "tokenizer_config.json": "{}"},
        "no_tokenizer": {"config.json": '{"model_type": "gpt2"}'},
        "foreign_code": {
            "tokenizer.json": (folders / "bare/tokenizer.json").read_text(),
            "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}',
            "own.py": f"open({str(tmp_path / 'was_run')!r}, 'w')",
        },
    }
    words = ("has no tokenizer.json", "cannot be read", "cannot be read", "no vocabulary", "code")
    for (name, content), word in zip(files.items(), words, strict=True):
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text)
        assert word in refusal(tmp_path / name)
    assert not (tmp_path / "was_run").exists()

    import transformers

    def unreachable(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    assert "none in the hub's cache, and the hub is not reachable (OSError: W" in refusal("org/n")

    class Slow:
        eos_token_id = sep_token_id = bos_token_id = None

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    assert "not a fast tokenizer" in refusal("org/name")


HUB = """
import os, pickle
from w2s_jax.data import tokenizers
from w2s_jax.core.errors import InputError
t = tokenizers.load_tokenizer("org/name")
u = pickle.loads(pickle.dumps(t))
tokenizers._ENGINES.clear()
print("TRANSFORMERS_NO_ADVISORY_WARNINGS" in os.environ)
print(t.source, t.end_of_text, u == t, u.encode_batch(["The quick fox"])[0].tolist())
try:
    tokenizers.load_tokenizer("org/other")
except InputError as error:
    print(error)
"""


def test_hub_ids_come_from_the_hubs_cache(tmp_path, folders):
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in (folders / "gpt2").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "config.json").write_text("{}")
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=env, capture_output=True, text=True, timeout=120
    )
    expected = load_tokenizer(str(folders / "gpt2")).encode_batch(["The quick fox"])[0].tolist()
    assert done.returncode == 0, done.stderr
    ours, first, second = done.stdout.splitlines()
    assert ours == "False"
    assert first == f"org/name 0 True {expected}"
    assert second.startswith("task.tokenizer: 'org/other': no such folder, and none in the hub's")
    assert "PyTorch" not in done.stderr


FORK = """
import os, sys
from w2s_jax.data.tokenizers import load_tokenizer
t = load_tokenizer(sys.argv[1])
texts = ["some words in a row"] * 5000
before = t.encode_batch(texts)[0]
child = os.fork()
if child == 0:
    os._exit(int((t.encode_batch(texts)[0] != before).any()))
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_process_can_encode(folders):
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", FORK, str(folders / "bare")]
    assert subprocess.run(command, env=env, capture_output=True, timeout=120).returncode == 0


def _in_worker(tokenizer, cache_dir):
    os.environ["W2S_CACHE_DIR"] = cache_dir
    for _ in range(20):
        for path in Path(cache_dir).glob("tokens/*.npz"):
            path.unlink(missing_ok=True)
        tokens_T, lengths_N = encode_cached(tokenizer, TEXTS)
    return tokens_T, lengths_N, os.environ["TOKENIZERS_PARALLELISM"], len(tokenizers._ENGINES)


def test_two_processes_at_once(folders, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(str(folders / "bare"))
    expected = tokenizer.encode_batch(TEXTS)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(_in_worker, [(tokenizer, str(tmp_path))] * 2, chunksize=1)
    for tokens_T, lengths_N, parallelism, engines in results:
        np.testing.assert_array_equal(tokens_T, expected[0])
        np.testing.assert_array_equal(lengths_N, expected[1])
        assert parallelism == "false" and engines == 1
    assert [path.suffix for path in (tmp_path / "tokens").iterdir()] == [".npz"]
    # Only workers are kept to one thread, and the user's own setting stays.
    load_tokenizer(str(folders / "bare"))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    load_tokenizer(str(folders / "bare"))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_tokenizer_changed_on_disk_is_refused(folders, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_bytes((folders / "bare/tokenizer.json").read_bytes())
    data = pickle.dumps(load_tokenizer(str(path)))
    assert len(data) < 1000
    monkeypatch.setattr(tokenizers, "_ENGINES", {})
    assert pickle.loads(data).encode_batch(["a"])[1].tolist() == [1]
    monkeypatch.setattr(tokenizers, "_ENGINES", {})
    path.write_bytes((folders / "unigram/tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="has changed since it was loaded"):
        pickle.loads(data).encode_batch(["a"])


def test_real_reviews(tmp_path):
    data = os.environ.get("W2S_TEST_DATA")
    if not data:
        pytest.skip("W2S_TEST_DATA is not set")
    with gzip.open(Path(data) / "data/imdb/test.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(400), strict=False)]
    backend = byte_level(["<|endoftext|>"])
    backend.train_from_iterator(texts, tk.trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    save(backend, tmp_path)
    tokenizer, truth = load_tokenizer(str(tmp_path)), auto(tmp_path)
    given = split(*tokenizer.encode_batch(texts))
    assert given == truth(texts, add_special_tokens=False)["input_ids"]
    assert [truth.decode(tokens) for tokens in given] == texts


def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path):
    code = "from w2s_jax.data.tokenizers import load_tokenizer; load_tokenizer('org/name')"
    env = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "the hub is not reachable" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 20  # retries would take 46 s
