"""Halving and doubling: swap halves, then quarters, ...; then put them together again.

In the first half the two ranks at distance 1, then 2, 4, ... divide the range that both hold: each
sends the half that it gives up, and adds the half that it keeps. After lg p rounds every rank owns
one part, finished. The second half plays the film backwards and doubles the ranges.

Four ranks, four parts; what rank 2 does:

    round | with | sends | then has
    ------+------+-------+--------------------------------
      1   |  3   | 2-3   | x2+x3 for parts 0-1
      2   |  0   | 0     | the sum for part 1
      3   |  0   | 1     | the sum for parts 0-1
      4   |  3   | 0-1   | the sum

If p is no power of two, the ranks beyond the largest one, c, fold: they hand in their buffers
before, and get the sum afterwards.

Cost: 2 lg c rounds, every rank sends 2 (c - 1) / c n bytes:
2 lg c alpha + 2 (c - 1) / c n beta + (c - 1) / c n gamma, and 2 alpha + 2 n beta + n gamma for the
fold. As few bytes as a ring in far fewer rounds.

Reference: Rabenseifner, "Optimization of collective reduction operations" (2004). It is the
`butterfly` whose degrees are all 2.
"""

from __future__ import annotations

from collectives.algorithms.butterfly import Degrees, butterfly


def twos(world_size: int) -> Degrees:
    """As many twos as fit into `world_size`."""
    return (2,) * (world_size.bit_length() - 1)


ALGORITHM = butterfly("halving-doubling", twos)
