"""The order in which a kernel walks a map: for each direction, chunks of a line in scan order."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from medmamba_jax.ops.pallas_gpu.mosaic import Index, pl
from medmamba_jax.ops.pallas_gpu.problem import Problem


@dataclasses.dataclass(frozen=True)
class Walk:
    """Chunks of `chunk` pixels along the rows (k even) or columns (k odd) of a map.

    Directions k >= 2 take the same chunks and the same pixels in each, but from the last to the
    first. A bare scan is a map of one row, and every direction walks it forward. If `k` is traced,
    the results are traced, too.
    """

    problem: Problem
    chunk: int

    def _per_line(self):
        """Returns the number of chunks of a row and of a column."""
        h, w = self.problem.padded
        return w // self.chunk, h // self.chunk

    def chunks(self, k: Index) -> Index:
        """Returns the number of chunks of direction k. It is traced if directions differ in it."""
        per_row, per_column = self._per_line()
        by_rows = self.problem.h * per_row
        if not self.problem.four_orders:
            return by_rows
        by_columns = self.problem.w * per_column
        return by_rows if by_rows == by_columns else jnp.where(k & 1, by_columns, by_rows)

    def segment(self, k: Index, s: Index, segments: int) -> tuple[Index, Index]:
        """Returns the first chunk of segment s, in scan order, and the one after its last."""
        if segments == 1:
            return 0, self.chunks(k)
        # Whole forward chunks, so that forward and backward kernels cut at the same pixels.
        whole = self.problem.config.forward_chunk // self.chunk
        each = lax.div(self.chunks(k) // whole + segments - 1, segments) * whole
        return jnp.minimum(s * each, self.chunks(k)), jnp.minimum((s + 1) * each, self.chunks(k))

    def pixels(self, k: Index, c: Index, use: Callable[[Any, Any], None]) -> None:
        """Calls use(rows, columns) with the place of scan chunk c: a slice and a number."""
        per_row, per_column = self._per_line()
        if not self.problem.four_orders:
            use(0, pl.ds(c * self.chunk, self.chunk))
            return
        c = jnp.where(k >= 2, self.chunks(k) - 1 - c, c)

        @pl.when((k & 1) == 0)
        def _():
            use(lax.div(c, per_row), pl.ds(lax.rem(c, per_row) * self.chunk, self.chunk))

        @pl.when((k & 1) == 1)
        def _():
            use(pl.ds(lax.rem(c, per_column) * self.chunk, self.chunk), lax.div(c, per_column))

    def pixel(self, k: Index, i: Index) -> Index:
        """Returns the place of the chunk's i-th step within the chunk, in memory order."""
        return jnp.where(k >= 2, self.chunk - 1 - i, i) if self.problem.four_orders else i

    def real_pixels(self, k: Index, c: Index) -> Index | None:
        """Returns how many pixels of scan chunk c lie on the map; None if all chunks are full."""
        p = self.problem
        per_row, per_column = self._per_line()
        if p.padded == (p.h, p.w):
            return None
        if not p.four_orders:
            return p.w - c * self.chunk
        c = jnp.where(k >= 2, self.chunks(k) - 1 - c, c)
        in_row = p.w - lax.rem(c, per_row) * self.chunk
        in_column = p.h - lax.rem(c, per_column) * self.chunk
        return jnp.where(k & 1, in_column, in_row)
