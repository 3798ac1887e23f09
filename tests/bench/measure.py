"""What benchmarks share: their Python, figures with intervals, and CPU time of processes."""

import os
import pathlib
import random
import statistics
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]


def in_venv():
    """Goes on in the environment of the tests, which is made if it is not there."""
    venv = TESTS.parent / "target/venv-tests"
    if pathlib.Path(sys.prefix) != venv:
        subprocess.run([TESTS / "venvs", "bench"], check=True)
        os.execv(venv / "bin/python", [str(venv / "bin/python"), *sys.argv])
    sys.path[:0] = [str(TESTS), str(TESTS / "shared")]


def say_what_is_measured(programs):
    """Figures of a build without optimisation say little about the product."""
    note = " (not optimised: cargo build --release)" if programs.name == "debug" else ""
    print(f"programs: {programs}{note}; load before: {os.getloadavg()[0]:.1f}", flush=True)


def cpu_seconds(pid):
    """User and system time of a process and all its threads, also those that have ended."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def ratio(ours, theirs, rounds=4000):
    """Ratio of medians, and the interval in which 95 of 100 resamplings of the same pairs fall."""
    pairs = list(zip(ours, theirs, strict=True))
    draws = []
    for _ in range(rounds):
        drawn = random.choices(pairs, k=len(pairs))
        draws.append(statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn))
    draws.sort()
    whole = statistics.median(ours) / statistics.median(theirs)
    return whole, draws[int(rounds * 0.025)], draws[int(rounds * 0.975)]


def spread(values, unit="s", digits=2):
    return f"median {statistics.median(values):.{digits}f} {unit} ({min(values):.{digits}f}–{max(values):.{digits}f})"
