#!/usr/bin/env python3
"""What a count of a large corpus would take on many executors: an arithmetic model, fed with figures measured on one machine.

Each phase takes as long as the most busy of what it uses: the slots (CPU seconds of its units, in whole waves), the store's
bandwidth, the store's requests, and the driver. Phases follow each other. `tools/bench_cluster.py --model FILE` measures the figures
and writes them to FILE; every one can be set.

    tools/cluster_model.py --figures FILE                         100 TB on 1,000 executors of 8 slots
    tools/cluster_model.py --figures FILE --executors 100 --unit-size 1e9
    tools/cluster_model.py --figures FILE --check                 against the runs that FILE tells of
"""

import argparse
import json
import math
from types import SimpleNamespace

# Measured figures: see "How it scales" in docs/cluster.md.
DEFAULTS = {
    "terms_rate": (12e6, "bytes of text that one slot reads, tokenizes and collects in a second"),
    "count_rate": (12e6, "bytes of text whose tokens one slot counts into runs in a second"),
    "reduce_rate": (40e6, "bytes of runs that one slot sums in a second"),
    "fold_rate": (40e6, "bytes of terms that one slot (or the driver) sums in a second"),
    "tokens_share": (0.7, "bytes of token ids for a byte of text"),
    "terms_scale": (44.0, "types of a unit = scale x (tokens of the unit) ^ 0.67 (Heaps)"),
    "term_bytes": (30.0, "bytes of a term in a list of terms"),
    "token_bytes": (6.0, "bytes of text of a token"),
    "pairs_scale": (12.0, "pairs of a unit = scale x (tokens of the unit) ^ 0.92, at most half of the vocabulary squared"),
    "pair_bytes": (4.0, "bytes of a pair in a run"),
    "unit_overhead": (0.06, "seconds of a slot for each unit beside its work"),
    "submit": (0.004, "seconds of the driver and scheduler for each unit"),
    "manifest": (0.0004, "seconds of the driver for each manifest that it reads"),
    "fixed": (0.5, "seconds of the driver to start and to commit"),
    "phase": (0.1, "seconds that the driver sleeps at the end of a phase"),
}
# Requests to an object store of a unit: plan, mark, data and manifest put; mark removed; looks.
REQUESTS = {"terms": 9, "fold": 6, "count": 8, "combine": 6}


def phases(a):
    """Of each phase: name, units, and the seconds that each resource would take alone."""
    slots = a.executors * a.slots
    units = math.ceil(a.text / a.unit_size)
    tokens = a.unit_size / a.token_bytes
    unit_terms = a.terms_scale * tokens**0.67 * a.term_bytes
    unit_runs = min(a.pairs_scale * tokens**0.92, a.vocabulary**2 / 2) * a.pair_bytes
    # A list of 64 times the tokens has 64 ^ 0.67 times the types. A given vocabulary has no other terms, and its lists are of its size.
    rounds, lists, list_terms = [], units, unit_terms
    if a.given_vocabulary:
        list_terms = unit_terms = min(unit_terms, a.vocabulary * a.term_bytes)
    while lists > 64:
        rounds.append((math.ceil(lists / 64), lists, list_terms))
        lists, list_terms = math.ceil(lists / 64), list_terms * (1 if a.given_vocabulary else 64**0.67)
    last_lists = lists * list_terms
    ids = a.tokens_share * a.unit_size
    runs = units * unit_runs
    # The runs of more than 128 units are summed in groups of 8 before; a group is smaller than its parts, as a larger unit is.
    groups = math.ceil(units / 8) if units > 128 else 0
    group_runs = min(unit_runs * 8**0.92, a.vocabulary**2 / 2 * a.pair_bytes)
    last_runs = groups * group_runs if groups else runs
    # A range opens every run that is left: its end, its index, and what it has of the range.
    opened = (groups or units) * a.ranges * 3
    rows = [
        # name, units, CPU seconds of one, bytes of all through the store, requests of all, seconds of the driver alone
        ("terms", units, a.unit_size / a.terms_rate, units * (a.unit_size * a.stored_share + ids + unit_terms), units * REQUESTS["terms"], a.fixed),
        *(
            ("fold", folds, 64 * held / a.fold_rate, 2 * read * held, read + folds * REQUESTS["fold"], 0)
            for folds, read, held in rounds
        ),
        ("vocabulary", 0, 0, last_lists, lists, last_lists / a.fold_rate + units * a.manifest),
        ("count", units, a.unit_size / a.count_rate, units * (ids + unit_terms + unit_runs), units * REQUESTS["count"], units * a.manifest),
        ("combine", groups, 8 * unit_runs / a.reduce_rate, runs + last_runs, units * 3 + groups * REQUESTS["combine"], 0),
        ("reduce", a.ranges, last_runs / a.ranges / a.reduce_rate, last_runs, opened, 0),
    ]
    for name, count, cost, volume, requests, alone in rows:
        # More slots than cores take turns.
        waves = math.ceil(count / slots) * max(1.0, min(slots, count) / a.cores) if count else 0
        yield (
            name,
            count,
            {
                "slots": waves * (cost + a.unit_overhead),
                "store bytes": volume / min(a.store_bandwidth, a.executors * a.bandwidth),
                "store requests": requests / a.store_requests,
                "driver": count * a.submit + alone + (a.phase if count else 0),
            },
        )


def total(a):
    return sum(max(times.values()) + (a.phase if count else 0) for _, count, times in phases(a))


def table(a):
    busiest_of_all, whole = ("", 0.0), 0.0
    units = math.ceil(a.text / a.unit_size)
    print(f"{a.text:.3g} bytes of text, {units:,} units, {a.ranges:,} ranges, {a.executors * a.slots:,} slots on {a.executors:,} executors")
    print("| phase | units | slots | store bytes | store requests | driver | takes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, count, times in phases(a):
        busiest = max(times, key=times.get)
        whole += times[busiest]
        if times[busiest] > busiest_of_all[1]:
            busiest_of_all = (f"{busiest} in {name}", times[busiest])
        cells = " | ".join(("**%s**" if key == busiest else "%s") % say(value) for key, value in times.items())
        print(f"| {name} | {count:,} | {cells} | {say(times[busiest])} |")
    print(f"{say(whole)} in all; most of it: {busiest_of_all[0]}")


def check(figures, a):
    """The model beside the runs that its figures come from, and beside those with other layouts."""
    print("| executors x slots | units | measured | model | model / measured |\n| --- | --- | --- | --- | --- |")
    for run in figures["runs"]:
        # On one machine the store is a disk that all share.
        here = {"store_bandwidth": figures["disk"], "bandwidth": figures["disk"], "store_requests": 1e9, "cores": figures["cores"]}
        shape = {key: run[key] for key in ("executors", "slots", "text", "unit_size", "vocabulary", "ranges")}
        predicted = total(SimpleNamespace(**{**vars(a), **here, **shape}))
        print(f"| {run['executors']} x {run['slots']} | {run['units']} | {say(run['wall'])} | {say(predicted)} | {predicted / run['wall']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=argparse.FileType(), help="figures measured by tools/bench_cluster.py --model")
    parser.add_argument("--check", action="store_true", help="compare the model with the measured runs")
    parser.add_argument("--text", type=float, default=100e12, help="bytes of text, decompressed")
    parser.add_argument("--unit-size", type=float, default=4e9)
    parser.add_argument("--vocabulary", type=float, default=400e3)
    parser.add_argument("--given-vocabulary", action="store_true", help="count --vocab FILE: no terms but those of the vocabulary")
    parser.add_argument("--executors", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--cores", type=float, default=math.inf, help="of all executors together; more slots take turns")
    parser.add_argument("--ranges", type=int, default=4000)
    parser.add_argument("--bandwidth", type=float, default=500e6, help="bytes/s of one executor to the store")
    parser.add_argument("--store-bandwidth", type=float, default=100e9, help="bytes/s of the store")
    parser.add_argument("--store-requests", type=float, default=50e3, help="requests/s of the store")
    parser.add_argument("--stored-share", type=float, default=0.4, help="bytes of Parquet for a byte of text")
    for name, (value, help_text) in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"{help_text} [{value}]")
    figures = json.load(parser.parse_args().figures) if parser.parse_args().figures else None
    if figures:
        parser.set_defaults(**figures["rates"])
    a = parser.parse_args()
    if a.check:
        check(figures, a)
    else:
        table(a)


def say(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
