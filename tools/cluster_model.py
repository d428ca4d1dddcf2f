#!/usr/bin/env python3
"""What a count of a large corpus would take on many executors: an arithmetic model, fed with figures measured on one machine.

Each phase takes as long as the most busy of what it uses: the slots (CPU seconds of its units, in whole waves), the store's
bandwidth, the store's requests, and the driver. Phases follow each other. The figures come from tools/bench_cluster.py and the
manifests of its runs; every one can be set.

    tools/cluster_model.py                                        100 TB on 1,000 executors of 8 slots
    tools/cluster_model.py --executors 100 --unit-size 1e9
    tools/cluster_model.py --text 60e6 --unit-size 4e6 --executors 1 --slots 2 --store-requests 1e6      against a measured run
"""

import argparse
import math

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
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=float, default=100e12, help="bytes of text, decompressed")
    parser.add_argument("--unit-size", type=float, default=4e9)
    parser.add_argument("--vocabulary", type=float, default=400e3)
    parser.add_argument("--executors", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--ranges", type=int, default=4000)
    parser.add_argument("--bandwidth", type=float, default=500e6, help="bytes/s of one executor to the store")
    parser.add_argument("--store-bandwidth", type=float, default=100e9, help="bytes/s of the store")
    parser.add_argument("--store-requests", type=float, default=50e3, help="requests/s of the store")
    parser.add_argument("--stored-share", type=float, default=0.4, help="bytes of Parquet for a byte of text")
    for name, (value, help_text) in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"{help_text} [{value}]")
    a = parser.parse_args()
    slots = a.executors * a.slots
    units = math.ceil(a.text / a.unit_size)
    tokens = a.unit_size / a.token_bytes
    unit_terms = a.terms_scale * tokens**0.67 * a.term_bytes
    unit_runs = min(a.pairs_scale * tokens**0.92, a.vocabulary**2 / 2) * a.pair_bytes
    folds = math.ceil(units / 64) if units > 64 else 0
    lists = units
    while lists > 64:
        lists = math.ceil(lists / 64)
    all_terms = a.terms_scale * (a.text / a.token_bytes) ** 0.67 * a.term_bytes
    last_lists = min(lists * unit_terms * 64**0.67, lists * all_terms)
    ids = a.tokens_share * a.unit_size
    runs = units * unit_runs

    phases = [
        # name, units, CPU seconds of one, bytes of all through the store, requests of all, seconds of the driver alone
        ("terms", units, a.unit_size / a.terms_rate, units * (a.unit_size * a.stored_share + ids + unit_terms), units * 8, 0),
        ("fold", folds, 64 * unit_terms / a.fold_rate, 2 * units * unit_terms, units * 2 + folds * 4, 0),
        ("vocabulary", 0, 0, last_lists, lists, last_lists / a.fold_rate + units * a.manifest),
        ("count", units, a.unit_size / a.count_rate, units * (ids + unit_terms + unit_runs), units * 6, units * a.manifest),
        ("reduce", a.ranges, runs / a.ranges / a.reduce_rate, runs, units * a.ranges * 2, 0),
    ]
    busiest_of_all, total = ("", 0.0), 0.0
    print(f"{a.text:.3g} bytes of text, {units:,} units, {a.ranges:,} ranges, {slots:,} slots on {a.executors:,} executors")
    print("| phase | units | slots | store bytes | store requests | driver | takes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, count, cost, volume, requests, alone in phases:
        times = {
            "slots": math.ceil(count / slots) * (cost + a.unit_overhead) if count else 0.0,
            "store bytes": volume / min(a.store_bandwidth, a.executors * a.bandwidth),
            "store requests": requests / a.store_requests,
            "driver": count * a.submit + alone,
        }
        busiest = max(times, key=times.get)
        total += times[busiest]
        if times[busiest] > busiest_of_all[1]:
            busiest_of_all = (f"{busiest} in {name}", times[busiest])
        cells = " | ".join(("**%s**" if key == busiest else "%s") % say(value) for key, value in times.items())
        print(f"| {name} | {count:,} | {cells} | {say(times[busiest])} |")
    print(f"{say(total)} in all; most of it: {busiest_of_all[0]}")


def say(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
