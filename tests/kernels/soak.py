"""Many runs on eight threads over one session, and how much memory the process has after as many of them each time.

By hand: ``python -m tests.kernels.soak`` for 100,000 runs.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kernels.graphs import Layer, answer, same

THREADS = 8
OPTIONAL = ("sequence_lens", "initial_h", "initial_c")


def resident() -> int:
    """Bytes of memory that this process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(runs: int, parts: int = 10) -> list[int]:
    """Memory after each of ``parts`` parts of ``runs``, behind one more to warm up. Answers have to stay the same."""
    layer = Layer(kind="LSTM", input=16, hidden=32, direction="bidirectional")
    session = layer.session(*OPTIONAL, threads=2)
    # Of several shapes, and the largest is shared out among the session's own threads.
    shapes = ((1, 1), (3, 9), (16, 2), (0, 3), (24, 20))
    feeds = [layer.feeds(steps, batch, *OPTIONAL, seed=at) for at, (steps, batch) in enumerate(shapes)]
    expected = [answer(session, feed) for feed in feeds]

    def run(at: int) -> None:
        which = at % len(feeds)
        if not same(answer(session, feeds[which]), expected[which]):
            raise AssertionError(f"run {at} answered otherwise")

    found = []
    with ThreadPoolExecutor(THREADS) as pool:
        for part in range(parts + 1):
            for _ in pool.map(run, range(runs // parts)):
                pass
            if part > 0:
                found.append(resident())
    return found


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for part, memory in enumerate(soak(runs), 1):
        sys.stdout.write(f"after {part * runs // 10} runs: {memory / 2**20:.1f} MiB\n")


if __name__ == "__main__":
    main()
