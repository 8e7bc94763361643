"""A position that follows the moves of a legal game, fast enough for millions of them.

It knows how pieces move only as far as the next position depends on it, so it does not check that
moves are legal; `rules` does. Tests compare its positions with those of python-chess.
"""

from w2s_jax.data.tasks.chess.notation import CASTLING, EMPTY, INDEX, NO_SQUARE, SIDES, SQUARES

_START = "rnbqkbnr" + "p" * 8 + EMPTY * 32 + "P" * 8 + "RNBQKBNR"
# Index of a square -> the castling rights that end with a move from it or to it.
_ENDED = {
    INDEX[square]: rights
    for square, rights in {
        **{"e1": "KQ", "h1": "K", "a1": "Q"},
        **{"e8": "kq", "h8": "k", "a8": "q"},
    }.items()
}
_DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def _rays(square: int) -> list[tuple[bool, list[int]]]:
    """Return (whether it is diagonal, squares from near to far) of each line from a square."""
    rays = []
    for dy, dx in _DIRECTIONS:
        row, column = divmod(square, 8)
        ray = []
        while 0 <= (row := row + dy) < 8 and 0 <= (column := column + dx) < 8:
            ray.append(8 * row + column)
        rays.append((bool(dy and dx), ray))
    return rays


_RAYS = [_rays(square) for square in range(64)]


class Position:
    """A position of a game from the usual start.

    Attributes:
      squares: words of the 64 squares, a8 to h1.
      white: whether White is to move.
      castling: castling rights as in a FEN; '-' if there are none.
      en_passant: the square on which a pawn can be taken en passant by a legal move, or '-'.
    """

    __slots__ = ("castling", "en_passant", "squares", "white")

    def __init__(self) -> None:
        self.squares = list(_START)
        self.white = True
        self.castling = "KQkq"
        self.en_passant = NO_SQUARE

    def prompt(self) -> str:
        """Return the position's words (see `notation`)."""
        squares = " ".join(self.squares)
        return f"{squares} {SIDES[self.white]} {CASTLING[self.castling]} {self.en_passant}"

    def push(self, uci: str) -> None:
        """Play a legal move in UCI.

        Raises:
          ValueError: it is no move in UCI, or it does not move a piece of the side to move to a
            square without another one.
        """
        source, target = INDEX.get(uci[:2]), INDEX.get(uci[2:4])
        if source is None or target is None or uci[4:] not in ("", "q", "r", "b", "n"):
            raise ValueError("not a move in UCI")
        squares, white = self.squares, self.white
        piece, taken = squares[source], squares[target]
        if piece == EMPTY or piece.isupper() != white:
            raise ValueError(f"{SIDES[white]} has no piece on {uci[:2]}")
        if taken != EMPTY and taken.isupper() == white:
            raise ValueError(f"{SIDES[white]} has a piece on {uci[2:4]}")
        squares[source] = EMPTY
        squares[target] = piece
        self.en_passant = NO_SQUARE
        if piece in "Pp":
            self._push_pawn(source, target, taken, uci[4:])
        elif piece in "Kk" and abs(target - source) == 2:
            corner, beside = (
                (target + 1, target - 1) if target > source else (target - 2, target + 1)
            )
            squares[beside], squares[corner] = squares[corner], EMPTY
        if self.castling != "-":
            ended = _ENDED.get(source, "") + _ENDED.get(target, "")
            if ended:
                self.castling = "".join(r for r in self.castling if r not in ended) or "-"
        self.white = not white

    def _push_pawn(self, source: int, target: int, taken: str, promotion: str) -> None:
        """Do what a pawn's move does besides moving it."""
        squares, white = self.squares, self.white
        if promotion:
            squares[target] = promotion.upper() if white else promotion
        elif abs(target - source) == 16:
            passed = (source + target) // 2
            if any(self._can_take(column, target, passed) for column in (-1, 1)):
                self.en_passant = SQUARES[passed]
        elif taken == EMPTY and (target - source) % 8:
            # En passant: the pawn that is taken is in the row that this one leaves.
            squares[source // 8 * 8 + target % 8] = EMPTY

    def _can_take(self, side: int, target: int, passed: int) -> bool:
        """Return whether a pawn beside the square `target` may take the pawn on it en passant.

        It may not if its king would be attacked. Only along a line: other attacks on the king would
        be older than the move to `target`, and those of the pawn on it end.
        """
        column = target % 8 + side
        taker = target + side
        own = "p" if self.white else "P"
        if not 0 <= column < 8 or self.squares[taker] != own:
            return False
        after = list(self.squares)
        after[taker] = after[target] = EMPTY
        after[passed] = own
        king = after.index("k" if self.white else "K")
        for diagonal, ray in _RAYS[king]:
            first = next((after[square] for square in ray if after[square] != EMPTY), EMPTY)
            attackers = "bq" if diagonal else "rq"
            if first != EMPTY and first in (attackers.upper() if self.white else attackers):
                return False
        return True
