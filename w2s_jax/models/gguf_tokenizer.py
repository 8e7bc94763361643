"""The tokenizer in the metadata of a GGUF file, rebuilt as a fast tokenizer of Hugging Face.

Its files are kept in the folder `tokenizers` of the user's cache. Imports no JAX.
"""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError, first_line
from w2s_jax.core.files import atomic_write, cache_folder
from w2s_jax.models.gguf_files import GgufModel
from w2s_jax.models.notes import say

#: Types of tokens, as in llama.cpp.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: How texts are divided before bytes are merged, by `tokenizer.ggml.pre`: a regular expression; ''
#: for that of GPT-2, 'digits' for the same after single digits.
_DIVISIONS = {
    "default": "",
    "gpt-2": "",
    "smollm": "digits",
    "llama-bpe": rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_LETTERS}|\p{{N}}|{_REST}",
}


def tokenizer_folder(model: GgufModel) -> Path | None:
    """Return a folder with the tokenizer of a GGUF file, written if needed.

    Returns:
      The folder; None if the tokenizer is of a kind that is not known, which a line says.

    Raises:
      InputError: if the metadata of the tokenizer is damaged.
    """
    try:
        contents = _contents(model)
    except NotImplementedError as error:
        say(f"{model.path}: its tokenizer is not rebuilt: {error}; name another one for the role")
        return None
    except InputError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{model.path}: its tokenizer cannot be rebuilt ({first_line(error)})"
        ) from error
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_folder("tokenizers")
    if kept is not None:
        try:
            return _written(kept / digest, contents)
        except OSError:
            pass  # an unwritable cache is not an error
    return _written(_temporary() / digest, contents)


def _written(folder: Path, contents: Mapping[str, str]) -> Path:
    for name, text in contents.items():
        if not (folder / name).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / name) as file:
                file.write(text.encode())
    return folder


@functools.cache
def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="w2s_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _contents(model: GgufModel) -> dict[str, str]:
    """Return the files of the tokenizer, by name."""
    prefix = "tokenizer.ggml."
    data = {
        key.removeprefix(prefix): value
        for key, value in model.metadata.items()
        if key.startswith(prefix)
    }
    tokens, kind = data.get("tokens"), data.get("model")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise NotImplementedError("there is none in the metadata")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise NotImplementedError(f"tokenizer.ggml.model {kind!r}; known: {', '.join(makers)}")
    backend = makers[kind](data, tokens)
    _add_tokens(backend, data, tokens)
    _add_ends(backend, data, tokens)
    named = {
        f"{ours}_token": tokens[data[f"{theirs}_token_id"]]
        for ours, theirs in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
        if f"{theirs}_token_id" in data
    }
    record = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    record["clean_up_tokenization_spaces"] = False
    if isinstance(template := model.metadata.get("tokenizer.chat_template"), str):
        record["chat_template"] = template
    return {"tokenizer_config.json": json.dumps(record), "tokenizer.json": backend.to_str()}


def _byte_level(data: Mapping[str, Any], tokens: list[str]) -> Any:
    """Return a tokenizer that merges bytes, as GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = data.get("pre", "default")
    if pre not in _DIVISIONS:
        raise NotImplementedError(f"tokenizer.ggml.pre {pre!r}; known: {', '.join(_DIVISIONS)}")
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in data["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    division, whole = _DIVISIONS[pre], pre_tokenizers.ByteLevel(add_prefix_space=False)
    if division == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, whole])
    elif division:
        split = pre_tokenizers.Split(Regex(division), behavior="isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
    else:
        backend.pre_tokenizer = whole
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(data: Mapping[str, Any], tokens: list[str]) -> Any:
    """Return a tokenizer that merges characters by scores, as Llama 2's and Gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    vocab = {token: number for number, token in enumerate(tokens)}
    scores = dict(zip(tokens, data["scores"], strict=True))
    unknown = tokens[data.get("unknown_token_id", 0)]
    merges = generate_merges(vocab, scores)
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prepends = data.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    parts = [normalizers.Prepend("▁"), spaces] if prepends else [spaces]
    backend.normalizer = normalizers.Sequence(parts)
    decoded = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepends:
        decoded.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(decoded)
    return backend


def _add_tokens(backend: Any, data: Mapping[str, Any], tokens: list[str]) -> None:
    """Add the special tokens, and those that are found in a text before anything is merged."""
    from tokenizers import AddedToken

    types = data.get("token_type") or [1] * len(tokens)
    ends = {data.get(f"{name}_token_id") for name in ("bos", "eos", "padding")}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_UNKNOWN, _CONTROL) or number in ends:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_ends(backend: Any, data: Mapping[str, Any], tokens: list[str]) -> None:
    """Add the special tokens at the ends of a text; defaults are llama.cpp's."""
    from tokenizers import processors

    default = data["model"] == "llama" or data.get("pre") == "llama-bpe"
    ends = {}
    for name, wanted in (
        ("bos", data.get("add_bos_token", default)),
        ("eos", data.get("add_eos_token", False)),
    ):
        number = data.get(f"{name}_token_id")
        ends[name] = [number] if wanted and number is not None else []
    if not (ends["bos"] or ends["eos"]):
        return
    special = sorted({*ends["bos"], *ends["eos"]})
    first, last = ([tokens[number] for number in ends[name]] for name in ("bos", "eos"))
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1"]
        + [f"{token}:1" for token in last],
        special_tokens=[(tokens[number], number) for number in special],
    )
