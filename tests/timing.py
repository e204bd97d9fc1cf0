"""How long something takes where other work, and a large heap, are in the same process or machine."""

import gc
import time
from collections.abc import Callable

TRIES = 3


def processor_seconds(work: Callable[[], object], allowed: float) -> float:
    """Processor time of `work`, the least of at most three tries; the first that is below `allowed` ends them.

    The collector is off meanwhile: one pass over what other tests have left can take longer than the work.
    """
    least = float("inf")
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(TRIES):
            began = time.process_time()
            work()
            least = min(least, time.process_time() - began)
            if least < allowed:
                break
    finally:
        if collecting:
            gc.enable()
    return least
