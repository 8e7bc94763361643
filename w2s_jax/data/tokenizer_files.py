"""Reading fast tokenizers of Hugging Face, and what there is to know about one."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.hf_hub import INSTALL

# What a user can name besides 'bytes'.
OTHERS = (
    "a folder in Hugging Face's layout",
    "a tokenizer.json file",
    "the hub id of a repository with a fast tokenizer",
)
# A code point that is no character, and so in no piece of text: makes a token's spelling unusable.
_UNSPELLABLE = "\U0010ffff"


def read_backend(name: str, source: str, local_only: bool) -> tuple[Any, int | None]:
    """The `tokenizers.Tokenizer`, and the end of text that its files name."""
    path = Path(source)
    backend: Any
    if path.is_dir() and not is_described(path) and not (path / "tokenizer.json").is_file():
        raise refused(name, "the folder holds no tokenizer.json")
    try:
        if path.exists() and not (path.is_dir() and is_described(path)):
            from tokenizers import Tokenizer as Backend

            backend = Backend.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
            end_of_text = None
        else:
            auto = _auto_tokenizer().from_pretrained(
                source, trust_remote_code=False, local_files_only=local_only
            )
            backend = getattr(auto, "backend_tokenizer", None)
            known = (auto.eos_token_id, auto.sep_token_id, auto.bos_token_id)
            end_of_text = next((token for token in known if token is not None), None)
    except ImportError as error:
        raise refused(name, f"a package is missing ({one_line(error)}): {INSTALL}") from error
    except Exception as error:  # Anything can be wrong with a user's files, or with the network.
        hub = "in the hub's cache, and the hub is not reachable" if local_only else "on the hub"
        where = "cannot be read" if path.exists() else f"no such folder, and none {hub}"
        raise refused(name, f"{where} ({one_line(error)})") from error
    if not hasattr(backend, "encode_batch_fast"):
        raise refused(name, "it is not a fast tokenizer")
    backend.no_truncation()
    backend.no_padding()
    return backend, end_of_text


def is_described(folder: Path) -> bool:
    """Whether a folder says more of its tokenizer than a tokenizer.json does."""
    names = ("tokenizer_config.json", "config.json", "special_tokens_map.json")
    return any((folder / name).is_file() for name in names)


def _auto_tokenizer() -> Any:
    # That there is no PyTorch is said on import, and is as it should be here.
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    ours = variable not in os.environ
    os.environ.setdefault(variable, "1")
    try:
        from transformers import AutoTokenizer
    finally:
        if ours:
            del os.environ[variable]
    return AutoTokenizer


def refused(name: str, reason: str) -> InputError:
    return InputError(
        f"task.tokenizer: {name!r}: {reason}; allowed: {', '.join(('bytes', *OTHERS))}"
    )


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def ends(name: str, backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens put before and after a text."""
    encoding = backend.encode("0 a", add_special_tokens=True)
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    if not len(text):
        raise refused(name, "it makes no tokens of the text '0 a'")
    first, last = int(text[0]), int(text[-1])
    if last - first + 1 != len(text):
        raise refused(name, "it puts special tokens inside a text")
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last + 1 :])


def without_specials(spec: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """A tokenizer's JSON in which no text can become a special token; all ids stay.

    That special tokens aren't looked for does not do: to a model whose vocabulary lists them
    (Unigram does) they are pieces like any other. So they are respelt as nothing in a text is.
    A special token of a single character is an ordinary character too, and left alone.
    """
    respelt = {t: f"{_UNSPELLABLE}{t}{_UNSPELLABLE}" for t in special if len(t) > 1}
    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {respelt.get(piece, piece): id_ for piece, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[respelt.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = respelt.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        continuing = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if respelt.keys().isdisjoint((left, right, left + right.removeprefix(continuing)))
        ]
    if "dropout" in model:
        model["dropout"] = None
    added = [
        token | {"content": respelt[token["content"]], "special": True}
        if token["content"] in respelt
        else token
        for token in spec["added_tokens"]
    ]
    return spec | {"model": model, "added_tokens": added, "post_processor": None}


def begins_inside(spec: dict[str, Any], vocab: dict[str, int], vocab_size: int) -> np.ndarray:
    """bool [vocab_size]: whether a token begins with a byte that continues a character."""
    # Byte-level tokenizers write each byte as a character: itself where that can be printed, else
    # one of those from U+0100 on, in order (as GPT-2 began to do).
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelt = {byte: chr(byte) for byte in printable}
    spelt |= {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    starts: tuple[str, ...] = ()
    if '"type": "ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]]):
        starts = tuple(spelt[byte] for byte in range(0x80, 0xC0))
    elif spec["model"].get("byte_fallback"):
        starts = tuple(f"<0x{byte:02X}>" for byte in range(0x80, 0xC0))
    inside_V = np.zeros(vocab_size, bool)
    inside_V[[id_ for piece, id_ in vocab.items() if piece.startswith(starts)]] = True
    return inside_V


def single_token(encoder: Any, text: str) -> int | None:
    token = encoder.token_to_id(text)
    if token is None:
        ids = encoder.encode(text, add_special_tokens=False).ids
        # Unknown characters are a single token too, but one that says nothing.
        if len(ids) == 1 and encoder.decode(ids).strip() == text:
            token = ids[0]
    return token
