"""Random projection of P-dimensional gradients to d dimensions with signs that depend on (seed, coordinate) alone.

The matrix is never stored with an artifact: any shard, process or device makes the same one again. Coordinate c owns
ceil(d / 256) consecutive ticks of the counter-based generator Philox keyed by the seed (a tick gives 256 bits), so a
block of coordinates is one jump of the counter and one draw, whatever blocks others use.
"""

from __future__ import annotations

import numpy as np
import torch

BITS_PER_TICK = 256
#: Signs in one block (64 MiB of float32). It fixes the order of the sums, so it is no option.
BLOCK_SIGNS = 1 << 24
#: A matrix up to this size is kept; a larger one is made again, block by block, for every call.
KEEP_BYTES = 512 << 20


def signs(start: int, stop: int, *, dimension: int, seed: int) -> np.ndarray:
    """Rows `start` to `stop` of the P x d matrix of signs: float32 [stop - start, dimension], each -1 or 1."""
    ticks = -(-dimension // BITS_PER_TICK)
    generator = np.random.Philox(key=seed, counter=start * ticks)
    words = generator.random_raw((stop - start) * ticks * (BITS_PER_TICK // 64)).astype("<u8", copy=False)
    octets = words.view(np.uint8).reshape(stop - start, ticks * BITS_PER_TICK // 8)
    bits = np.unpackbits(octets, axis=1, count=dimension, bitorder="little")
    rows = bits.astype(np.float32)
    rows *= 2
    rows -= 1
    return rows


class Projection:
    """The linear map v -> v S / sqrt(d) with S from `signs`: E<Pu, Pv> = <u, v>, with an error of about 1 / sqrt(d).

    Args:
        parameters: P, length of the vectors.
        dimension: d, length of their projections.
        seed: the key of the generator, 0 or greater.

    Raises:
        ValueError: `dimension` below 1 or `seed` out of range.
    """

    def __init__(self, parameters: int, dimension: int, *, seed: int) -> None:
        if dimension < 1:
            raise ValueError(f"dimension of the projection: found {dimension}, expected 1 or more")
        if not 0 <= seed < 2**128:
            raise ValueError(f"seed of the projection: found {seed}, expected 0 to 2^128 - 1")
        self.parameters = parameters
        self.dimension = dimension
        self.seed = seed
        step = max(1, BLOCK_SIGNS // dimension)
        self._spans = [(start, min(start + step, parameters)) for start in range(0, parameters, step)]
        self.kept = 4 * parameters * dimension <= KEEP_BYTES
        self._blocks = [self._block(span) for span in self._spans] if self.kept else None

    def _block(self, span: tuple[int, int]) -> torch.Tensor:
        return torch.from_numpy(signs(*span, dimension=self.dimension, seed=self.seed))

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Projects rows: float32 [n, P] -> float32 [n, d]. Safe to call from several threads."""
        assert vectors.shape[1] == self.parameters, (vectors.shape, self.parameters)
        result = torch.zeros(vectors.shape[0], self.dimension)
        for number, (start, stop) in enumerate(self._spans):
            block = self._blocks[number] if self._blocks is not None else self._block((start, stop))
            result.addmm_(vectors[:, start:stop], block)
        return result.div_(self.dimension**0.5)
