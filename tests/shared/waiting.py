"""Tests never assert a time: they wait on a condition."""

import time

PATIENCE = 60.0


def until(what, condition, patience=PATIENCE, every=0.2):
    """The first true answer of `condition`; an AssertionError that names `what`, and the last answer, after `patience`."""
    deadline = time.monotonic() + patience
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s: {what}; last seen: {answer!r}")
        time.sleep(every)


def until_empty(what, condition, patience=PATIENCE, every=0.2):
    """Waits until `condition` has nothing more to name; what it last named is in the failure."""
    left = []

    def done():
        nonlocal left
        left = condition()
        return not left

    try:
        until(what, done, patience, every)
    except AssertionError:
        raise AssertionError(f"not within {patience:.0f} s: {what}; there is still {left}") from None
