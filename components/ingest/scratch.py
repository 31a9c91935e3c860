"""Memory that a thread uses again and again: the system takes longer to make new pages than the work on them takes."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

_MOST_KEPT = 24 << 20  # bytes of one piece that a thread keeps: 8 megapixels


class Scratch(threading.local):
    """A piece of memory for each thread, as large as was ever asked for; what is beyond 24 MiB is not kept."""

    _kept: npt.NDArray[np.uint8] | None = None

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [size] of any content, good until this thread takes again."""
        piece = self._kept
        if piece is None or len(piece) < size:
            piece = np.empty(size, np.uint8)
            self._kept = piece if size <= _MOST_KEPT else self._kept
        return piece[:size]
