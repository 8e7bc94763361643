"""Positions and moves as words, and their tokenizer 'chess_board'.

A position is 67 words: the 64 squares from a8 to h1, row by row as in a FEN; the side to move; the
castling rights; and the square on which a pawn can be taken en passant. A move is two words, the
squares it goes from and to (of castling: the king's), and a third one for a promotion.
"""

import functools

from w2s_jax.data.word_tokenizer import WordTokenizer, word_tokenizer

TOKENIZER = "chess_board"

EMPTY, NO_SQUARE = ".", "-"
PIECES = "PNBRQKpnbrqk"
SIDES = {True: "white", False: "black"}
#: a8, b8, ..., h1.
SQUARES = tuple(f"{file}{rank}" for rank in "87654321" for file in "abcdefgh")
INDEX = {square: i for i, square in enumerate(SQUARES)}
#: Castling rights as a FEN has them -> word.
CASTLING = {
    rights or "-": f"castling:{rights or '-'}"
    for rights in (
        "".join(right for bit, right in enumerate("KQkq") if number >> bit & 1)
        for number in range(16)
    )
}
#: Promotion as UCI has it -> word.
PROMOTIONS = {piece: f"={piece}" for piece in "qrbn"}
_PROMOTION_OF = {word: piece for piece, word in PROMOTIONS.items()}
_RIGHTS_OF = {word: rights for rights, word in CASTLING.items()}
_SIDE_OF = dict(zip(SIDES.values(), "wb", strict=True))

#: Number of words of a position.
LENGTH = 67

#: 100 words; the ids of a tokenizer are part of trained models, so their order never changes.
WORDS = (
    *(EMPTY, *PIECES),
    *SIDES.values(),
    *CASTLING.values(),
    *(NO_SQUARE, *SQUARES),
    *PROMOTIONS.values(),
)

_SPELT_OUT = str.maketrans({"/": "", **{str(n): EMPTY * n for n in range(1, 9)}})


@functools.cache
def board_tokenizer() -> WordTokenizer:
    """Return the tokenizer 'chess_board'."""
    return word_tokenizer(TOKENIZER, WORDS)


def prompt_of_fen(fen: str) -> str:
    """Return the words of a position given as a FEN with six fields, or the first four of them."""
    placement, side, castling, en_passant = fen.split()[:4]
    squares = " ".join(placement.translate(_SPELT_OUT))
    return f"{squares} {SIDES[side == 'w']} {CASTLING[castling]} {en_passant}"


def fen_of_prompt(prompt: str) -> str:
    """Return the FEN of a position in words; its clocks, which the words leave out, are 0 and 1.

    Raises:
      ValueError: the words are not a position.
    """
    words = prompt.split()
    try:
        *squares, side, castling, en_passant = words
        state = _SIDE_OF[side], _RIGHTS_OF[castling]
    except (KeyError, ValueError):
        state = None
    if len(words) != LENGTH or state is None:
        raise ValueError(f"not a chess position in words: {prompt[:80]!r}")
    rows = []
    for start in range(0, 64, 8):
        row, empty = "", 0
        for word in squares[start : start + 8]:
            if word == EMPTY:
                empty += 1
                continue
            row, empty = f"{row}{empty or ''}{word}", 0
        rows.append(f"{row}{empty or ''}")
    return f"{'/'.join(rows)} {' '.join(state)} {en_passant} 0 1"


def words_of_move(uci: str) -> str:
    """Return the words of a move in UCI: 'e2 e4' of e2e4, 'e7 e8 =q' of e7e8q."""
    words = f"{uci[:2]} {uci[2:4]}"
    return f"{words} {PROMOTIONS[uci[4]]}" if len(uci) == 5 else words


def move_in(text: str) -> str:
    """Return the move, in UCI, with which a text begins; '' if it begins with none."""
    words = text.split()[:3]
    if len(words) < 2 or not (words[0] in INDEX and words[1] in INDEX):
        return ""
    return words[0] + words[1] + _PROMOTION_OF.get("".join(words[2:]), "")
