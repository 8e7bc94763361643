"""Hard labels of a batch with given shares of the classes: an exact transport problem.

Among all hard labels h with row sums w_b (the documents' weights) and column sums share_c sum(w),
`transported` finds those that maximise sum_bc h_bc s_bc. It is a transportation problem, solved by
successive shortest augmenting paths (Ahuja, Magnanti & Orlin 1993, "Network Flows", section 9.7) on
the graph of the C classes:

1. Prices v_c are guessed by some steps of Sinkhorn's iteration at falling temperatures. Each
   document goes to the class of its largest s_bc - v_c. With any prices that is the best assignment
   with the column sums that it has, so a bad guess costs time, and never exactness.
2. While a class has too much and another too little: moving mass from class c to d costs at least
   min_b (s_bc - s_bd) over the documents that have mass in c. Along the cheapest path (by Bellman
   and Ford) from a class with too much to one with too little, as much is moved as its ends and
   the documents on it have.

Every path meets the share of a class or empties an entry of h, and costs O(B C^2). After the guess
there are usually fewer than 2 C paths, without it up to several B; `max_paths` bounds them. On CPU,
B = 256 and C = 20 take about 1.5 ms, B = 32 and C = 5 about 0.1 ms. Everything is in float32, of
fixed shapes and without a callback to the host, so it may be compiled, mapped (`vmap`) and sharded.

Letters in names: B documents of a batch, C classes, D classes that mass moves to.
"""

from typing import NamedTuple

from w2s_jax.core.lazy import Array, jax, jnp

#: Steps of Sinkhorn's iteration, and the factor of the temperature from one to the next.
_GUESSES, _COOLING = 60, 0.85


class _Flow(NamedTuple):
    """Masses h_BC of documents in classes; what each class has too much; prices; paths so far."""

    mass_BC: Array
    excess_C: Array
    price_C: Array
    paths: Array
    done: Array


def max_paths(documents: int, classes: int) -> int:
    """Return the largest number of augmenting paths that `transported` takes.

    It is far above what problems need, and ends the search whatever rounding does. Beyond it some
    classes would not have their share.
    """
    return 4 * classes * (documents + classes)


def transported(scores_BC: Array, shares_C: Array, weights_B: Array) -> Array:
    """Return the hard labels h_bc / w_b of a batch in which the classes have given shares.

    h maximises sum_bc h_bc s_bc for row sums w_b and column sums share_c sum(w). Documents whose
    scores are equal, up to a constant, share what their group has in a class in proportion to their
    weights. Where several h are best otherwise (a set of measure 0), the choice depends on scores
    and weights only: the order of the documents never matters.

    Args:
      scores_BC: finite scores, such as logits or log-probabilities; a constant for each document
        changes nothing.
      shares_C: non-negative shares with the sum 1.
      weights_B: non-negative weights; a document of weight 0 takes no part.

    Returns:
      float32 [B, C], rows with the sum 1, or 0 for documents of weight 0; without gradient. Column
      sums are exact to float32 rounding.
    """
    scores_BC, shares_C, weights_B = (
        jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (scores_BC, shares_C, weights_B)
    )
    scores_BC -= jnp.max(scores_BC, axis=1, keepdims=True)
    order_B = jnp.lexsort((weights_B, *scores_BC.T))
    scores_BC, weights_B = scores_BC[order_B], weights_B[order_B]
    # Each group of equal rows becomes one document, which has the mass of all.
    new_B = jnp.any(scores_BC[1:] != scores_BC[:-1], axis=1)
    group_B = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new_B, dtype=jnp.int32)])
    size = weights_B.shape[0]
    mass_G = jax.ops.segment_sum(weights_B, group_B, size, indices_are_sorted=True)
    scores_GC = scores_BC[jnp.searchsorted(group_B, jnp.arange(size)).clip(0, size - 1)]
    flow_GC = _solved(scores_GC, shares_C, mass_G)
    labels_GC = flow_GC / jnp.where(mass_G > 0, mass_G, 1.0)[:, None]
    labels_BC = jnp.where(weights_B[:, None] > 0, labels_GC[group_B], 0.0)
    return jnp.zeros_like(labels_BC).at[order_B].set(labels_BC)


def _solved(scores_BC: Array, shares_C: Array, weights_B: Array) -> Array:
    """Return h_BC for documents with distinct scores, or of weight 0."""
    size, classes = scores_BC.shape
    total = jnp.sum(weights_B)
    wanted_C = shares_C * (total / jnp.maximum(jnp.sum(shares_C), 1e-9))
    price_C = _guessed_prices(scores_BC, wanted_C, weights_B)
    own_B = jnp.argmax(scores_BC - price_C[None, :], axis=1)
    mass_BC = weights_B[:, None] * jax.nn.one_hot(own_B, classes)
    # Where less than this is left, it is rounding of the sums.
    least = jnp.finfo(jnp.float32).eps * total
    limit = max_paths(size, classes)

    def unfinished(flow: _Flow) -> Array:
        return ~flow.done & (flow.paths < limit)

    def augmented(flow: _Flow) -> _Flow:
        # [C, D]: the price of moving mass, by the document that is cheapest to move.
        gap_BCD = scores_BC[:, :, None] - scores_BC[:, None, :]
        gap_CD = jnp.min(jnp.where(flow.mass_BC[:, :, None] > 0, gap_BCD, jnp.inf), axis=0)
        # Not negative but for rounding: the assignment is the best one with its column sums.
        length_CD = jnp.maximum(gap_CD - flow.price_C[:, None] + flow.price_C[None, :], 0.0)
        distance_C, before_C = _shortest_paths(length_CD, flow.excess_C > least)
        distance_to_C = jnp.where(flow.excess_C < -least, distance_C, jnp.inf)
        end = jnp.argmin(distance_to_C)
        found = distance_to_C[end] < jnp.inf
        mass_BC, excess_C = _moved(scores_BC, flow.mass_BC, flow.excess_C, before_C, end)
        price_C = flow.price_C - jnp.minimum(distance_C, distance_to_C[end])
        return _Flow(
            jnp.where(found, mass_BC, flow.mass_BC),
            jnp.where(found, excess_C, flow.excess_C),
            jnp.where(found, price_C, flow.price_C),
            flow.paths + 1,
            ~found,
        )

    start = _Flow(
        mass_BC,
        jnp.sum(mass_BC, axis=0) - wanted_C,
        price_C,
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    return jax.lax.while_loop(unfinished, augmented, start).mass_BC


def _guessed_prices(scores_BC: Array, wanted_C: Array, weights_B: Array) -> Array:
    """Return prices at which documents that go to their best class nearly meet `wanted_C`."""
    total = jnp.maximum(jnp.sum(weights_B), 1e-9)
    floor = 1e-6 * total
    spread = jnp.sum(weights_B * jnp.mean(-scores_BC, axis=1)) / total

    def step(number: Array, price_C: Array) -> Array:
        temperature = jnp.maximum(spread * _COOLING**number, 1e-9)
        p_BC = jax.nn.softmax((scores_BC - price_C[None, :]) / temperature, axis=1)
        has_C = weights_B @ p_BC
        ratio_C = jnp.maximum(has_C, floor) / jnp.maximum(wanted_C, floor)
        return price_C + temperature * jnp.log(jnp.maximum(ratio_C, 1e-9))

    return jax.lax.fori_loop(0, _GUESSES, step, jnp.zeros_like(wanted_C))


def _shortest_paths(length_CD: Array, source_C: Array) -> tuple[Array, Array]:
    """Return the distance of each class from the sources, and the class before it (-1: none).

    Lengths are not negative, and only a shorter path replaces one: paths have no cycle.
    """

    def relaxed(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        distance_C, before_C, _ = carry
        through_CD = distance_C[:, None] + length_CD
        nearer_C = jnp.min(through_CD, axis=0) < distance_C
        before_C = jnp.where(nearer_C, jnp.argmin(through_CD, axis=0), before_C)
        distance_C = jnp.where(nearer_C, jnp.min(through_CD, axis=0), distance_C)
        return distance_C, before_C, jnp.any(nearer_C)

    start_C = jnp.where(source_C, 0.0, jnp.inf)
    start = (start_C, jnp.full(start_C.shape, -1), jnp.ones((), bool))
    return jax.lax.while_loop(lambda carry: carry[2], relaxed, start)[:2]


def _moved(
    scores_BC: Array, mass_BC: Array, excess_C: Array, before_C: Array, end: Array
) -> tuple[Array, Array]:
    """Return masses and excesses after as much as possible moved along the path to `end`."""

    def back(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to, moves_BC = carry
        source = before_C[to]
        gap_B = scores_BC[:, source] - scores_BC[:, to]
        document = jnp.argmin(jnp.where(mass_BC[:, source] > 0, gap_B, jnp.inf))
        moves_BC = moves_BC.at[document, to].add(1.0).at[document, source].add(-1.0)
        return source, moves_BC

    start, moves_BC = jax.lax.while_loop(
        lambda carry: before_C[carry[0]] >= 0, back, (end, jnp.zeros_like(mass_BC))
    )
    # A document that makes moves in a row needs mass in the class of the first one only.
    amount = jnp.min(jnp.where(moves_BC < 0, mass_BC, jnp.inf))
    amount = jnp.minimum(amount, jnp.minimum(excess_C[start], -excess_C[end]))
    return mass_BC + amount * moves_BC, excess_C.at[start].add(-amount).at[end].add(amount)
