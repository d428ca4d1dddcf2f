"""shared/data/parquet-variety at collection time: its manifest, or nothing when the folder is absent."""

import csv

from conftest import shared_folder


def manifest(*folders):
    """Rows of MANIFEST.tsv for files in these folders; without the data, one None (its test is then skipped)."""
    shared = shared_folder()
    if shared is None:
        return [None]
    path = shared / "data" / "parquet-variety" / "MANIFEST.tsv"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return [row for row in rows if row["file"].split("/")[0] in folders]


def name(row):
    return row["file"].removesuffix(".parquet").replace("clusterfuzz-testcase-", "") if row else "absent"


def columns(row):
    """Column name → type as pyarrow writes it, from the manifest: some of these files abort pyarrow itself."""
    parts = [part.split(":", 1) for part in (row["columns"] or "").split("; ") if part]
    return {part[0]: part[1] if len(part) > 1 else "" for part in parts}


def text_columns(row):
    """Columns of text, of bytes, or of lists of them."""
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "list<")
    return [
        column
        for column, kind in columns(row).items()
        if kind.startswith(kinds)
        and ("string" in kind or "binary" in kind)
        and "struct" not in kind
        and "map" not in kind
    ]
