"""Puzzles and games as transcripts in standard algebraic notation (SAN), as in Burns et al. 2023.

Every half-move has its number: '1. e4 1... e5 2. Nf3 2... Nc6'.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from w2s_jax.core.errors import InputError, shown
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Candidate
from w2s_jax.data.tasks.chess.rules import chess_rules, legal_move, mates
from w2s_jax.data.tasks.fields import text_of

FIELDS = ("ctx", "target")

_SAN = re.compile(
    r"(?P<castling>[O0]-[O0](?:-[O0])?)"
    r"|(?P<move>[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8])(?:=?(?P<promotion>[QRBN]))?"
)
# A move number before a move: '12.', '12...', or written together with the move.
_NUMBER = re.compile(r"^\d+\.+")
# Transcripts whose final positions are kept: those of a test split.
_REPLAYED = 10_000


def expand_transcript(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the moves before the puzzle as the prompt, the best one after a space as the target.

    Raises:
      InputError: the target is not a move in SAN.
    """
    target = text_of(record, "target", where)
    if not san_in(target) or len(target.split()) > 1:
        raise InputError(f"{where}: field 'target': {shown(target)} is not a move in SAN")
    meta = {"id": record["id"]} if "id" in record else {}
    return [Candidate(text_of(record, "ctx", where), None, meta=meta, target=f" {target}")]


def san_in(text: str) -> str:
    """Return the move in SAN with which a text begins, in one spelling; '' if there is none.

    Marks of check, mate and quality ('+', '#', '!', '?') are removed, a promotion is written with
    '=', and castling with the letter O.
    """
    word = next(iter(text.split()), "").rstrip("+#!?")
    match = _SAN.fullmatch(word)
    if match is None:
        return ""
    if match["castling"]:
        return match["castling"].replace("0", "O")
    return match["move"] + (f"={match['promotion']}" if match["promotion"] else "")


@functools.lru_cache(_REPLAYED)
def _fen_after(transcript: str) -> str | None:
    board = chess_rules().Board()
    try:
        for word in transcript.split():
            san = _NUMBER.sub("", word)
            if san:
                board.push_san(san)
    except ValueError:
        return None
    return str(board.fen())


def _board(document: Document) -> Any:
    """Return the position after a document's moves; None if they cannot be replayed."""
    fen = _fen_after(document.text or "")
    return None if fen is None else chess_rules().Board(fen)


def _move(board: Any, san: str) -> Any:
    """Return the `chess.Move` of a move in SAN; None if it is illegal, ambiguous or none."""
    try:
        return board.parse_san(san)
    except ValueError:
        return None


def is_correct(answer: str, document: Document) -> bool:
    """Return whether the answer is the target's move, also if it is spelt in another way.

    Where the moves before it cannot be replayed, the spellings must be equal.
    """
    target = san_in(document.target or "")
    if not answer or answer == target:
        return answer != ""
    board = _board(document)
    if board is None:
        return False
    move = _move(board, answer)
    return move is not None and move == _move(board, target)


def is_legal(answer: str, document: Document) -> bool | None:
    """Return whether the answer is legal; None where the moves before it cannot be replayed."""
    board = _board(document)
    return None if board is None else _move(board, answer) is not None


def is_correct_or_mates(answer: str, document: Document) -> bool | None:
    """Return whether the answer is right or mates; None where moves cannot be replayed."""
    board = _board(document)
    if board is None:
        return None
    move = _move(board, answer)
    return is_correct(answer, document) or (move is not None and mates(board, move))


SCORES: dict[str, Callable[[str, Document], float | None]] = {
    "legal": is_legal,
    "correct_or_mates": is_correct_or_mates,
}


def transcript_of(moves: list[str]) -> str:
    """Return the transcript of a game of moves in UCI, from the usual start.

    Raises:
      ValueError: a move is illegal; names its number.
    """
    board = chess_rules().Board()
    words = []
    for ply, uci in enumerate(moves):
        move = legal_move(board, uci)
        if move is None:
            raise ValueError(f"move {ply + 1}, {shown(uci)}, is illegal")
        words.append(f"{ply // 2 + 1}{'...' if ply % 2 else '.'} {board.san_and_push(move)}")
    return " ".join(words)
