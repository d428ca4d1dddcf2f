"""The truncated SVD of `pmill embed` against SciPy's svds and scikit-learn's TruncatedSVD.

One real matrix: positive PMI of window counts of TERMS words of the given Parquet files. All see the same
matrix in 32 bits. Prints CPU and wall seconds of each, and the largest relative difference of the singular
values from those of svds (ARPACK, to machine precision).

    cargo build --release -p pmill-matrix --example svd
    python tools/bench_embed.py --pmill target/release/pmill --svd target/release/examples/svd \\
        --input ../shared/data/documents/*.parquet
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def seconds(work):
    def cpu():
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    wall, before = time.perf_counter(), cpu()
    result = work()
    return result, time.perf_counter() - wall, cpu() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pmill", required=True)
    parser.add_argument("--svd", required=True)
    parser.add_argument("--input", required=True, nargs="+")
    parser.add_argument("--text", default="text")
    parser.add_argument("--terms", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--oversampling", type=int, default=20)
    parser.add_argument("--power-iterations", type=int, default=22)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    import scipy.sparse
    import scipy.sparse.linalg
    import sklearn.decomposition

    def pmill(*flags):
        subprocess.run([arguments.pmill, *map(str, flags), "--quiet"], check=True)

    # Files whose text column is a string, of whatever name they have.
    inputs = [path for path in arguments.input if arguments.text in pq.read_schema(path).names]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pmill(
            "count", "--warehouse", folder / "wh", "--name", "j", "--input", *inputs, "--text", arguments.text,
            "--context", "window", "--vocab-size", arguments.terms,
        )  # fmt: skip
        pmill(
            "export", "--warehouse", folder / "wh", "--name", "j", "--format", "csr", "--value", "ppmi",
            "--precision", "single", "--output", folder / "m",
        )  # fmt: skip
        arrays = [np.load(folder / "m" / f"{name}.npy") for name in ("data", "indices", "indptr")]
        size = len(arrays[2]) - 1
        matrix = scipy.sparse.csr_matrix(tuple(arrays), shape=(size, size))
        print(f"matrix: {size:,} x {size:,}, {matrix.nnz:,} entries, positive PMI of {len(inputs)} files")
        rank = arguments.rank
        command = [arguments.svd, folder / "m", rank, arguments.oversampling, arguments.power_iterations]
        command = [*map(str, command), str(arguments.threads)]
        ours, *_ = seconds(lambda: json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        _, ours_wall, ours_cpu = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
        truncated = sklearn.decomposition.TruncatedSVD(rank, random_state=0)
        _, theirs_wall, theirs_cpu = seconds(lambda: truncated.fit(matrix))
        double = matrix.astype(np.float64)
        exact, exact_wall, exact_cpu = seconds(
            lambda: scipy.sparse.linalg.svds(double, k=rank, return_singular_vectors=False, random_state=0)
        )
        exact = np.sort(exact)[::-1]
        # The same again with as many iterations as 1 % takes.
        for iterations in (10, 15, 20, 30, 40):
            closer = sklearn.decomposition.TruncatedSVD(rank, n_iter=iterations, random_state=0)
            _, closer_wall, closer_cpu = seconds(lambda: closer.fit(matrix))  # noqa: B023
            if np.abs(closer.singular_values_ / exact - 1).max() <= 0.01:
                break
        rows = [
            ("pmill (with reading the file)", ours_wall, ours_cpu, np.array(ours["singular_values"])),
            ("scikit-learn TruncatedSVD, 5 iterations", theirs_wall, theirs_cpu, truncated.singular_values_),
            (f"scikit-learn TruncatedSVD, {iterations} iterations", closer_wall, closer_cpu, closer.singular_values_),
            ("scipy svds", exact_wall, exact_cpu, exact),
        ]
        for name, wall, cpu, values in rows:
            error = np.abs(values / exact - 1).max()
            print(f"{name:40} {wall:7.2f} s  {cpu:7.2f} CPU s  top {rank} within {100 * error:.3f} %")


if __name__ == "__main__":
    main()
