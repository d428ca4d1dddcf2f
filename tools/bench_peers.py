#!/usr/bin/env python3
"""Row-level pair counts by general programs: the 50,000 most frequent words, every pair of distinct words of a row
once, as Parquet(l, r, c).   bench_peers.py sklearn|gensim|duckdb|polars FOLDER OUT SPILL   Prints the number of pairs."""
import glob
import os
import sys

VOCABULARY = 50_000
peer, folder, out, spill = sys.argv[1:]
files = sorted(glob.glob(os.path.join(folder, "*.parquet")))
os.makedirs(spill, exist_ok=True)


def texts():
    import pyarrow.parquet as pq

    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(columns=["TEXT"]):
            yield from batch.column(0).to_pylist()


if peer == "sklearn":
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.sparse import triu
    from sklearn.feature_extraction.text import CountVectorizer

    matrix = CountVectorizer(analyzer=str.split, max_features=VOCABULARY, dtype=np.int32).fit_transform(texts())
    matrix.data[:] = 1
    pairs = triu(matrix.T @ matrix, 1).tocoo()
    pq.write_table(pa.table({"l": pairs.row, "r": pairs.col, "c": pairs.data}), out)
    print(pairs.nnz)
elif peer == "gensim":
    # gensim has words to ids and bags of words; the product of its sparse matrix is SciPy's.
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from gensim.corpora import Dictionary
    from gensim.matutils import corpus2csc
    from scipy.sparse import triu

    words = Dictionary((text.split() for text in texts()), prune_at=None)
    best = sorted(words.cfs, key=lambda word: (-words.cfs[word], words[word]))[:VOCABULARY]
    words.filter_tokens(good_ids=best)
    matrix = corpus2csc((words.doc2bow(text.split()) for text in texts()), num_terms=len(words), dtype=np.int32)
    matrix.data[:] = 1
    pairs = triu(matrix @ matrix.T, 1).tocoo()
    pq.write_table(pa.table({"l": pairs.row, "r": pairs.col, "c": pairs.data}), out)
    print(pairs.nnz)
elif peer == "duckdb":
    import duckdb

    base = duckdb.connect(os.path.join(spill, f"{os.getpid()}.db"))
    base.execute(f"SET threads=2; SET memory_limit='8GB'; SET temp_directory='{spill}'; SET preserve_insertion_order=false")
    source = f"(SELECT row_number() OVER () AS row_id, string_split(\"TEXT\", ' ') AS words FROM read_parquet({files!r}))"
    base.execute(f"CREATE TABLE rows AS SELECT * FROM {source}")
    base.execute(f"""CREATE TABLE vocab AS SELECT word, row_number() OVER (ORDER BY n DESC, word) AS id FROM
        (SELECT word, count(*) AS n FROM (SELECT unnest(words) AS word FROM rows) GROUP BY word
         ORDER BY n DESC, word LIMIT {VOCABULARY})""")
    base.execute("""CREATE TABLE terms AS SELECT row_id, id FROM
        (SELECT row_id, unnest(list_distinct(words)) AS word FROM rows) JOIN vocab USING (word)""")
    base.execute(f"""COPY (SELECT a.id AS l, b.id AS r, count(*) AS c FROM terms a JOIN terms b
        ON a.row_id = b.row_id AND a.id < b.id GROUP BY ALL) TO '{out}' (FORMAT parquet)""")
    print(base.execute(f"SELECT count(*) FROM '{out}'").fetchone()[0])
elif peer == "polars":
    os.environ["POLARS_MAX_THREADS"] = "2"
    import polars as pl

    words = pl.scan_parquet(files).select(pl.col("TEXT").str.split(" ").alias("word")).with_row_index("row").explode("word")
    vocabulary = (words.group_by("word").len().sort(["len", "word"], descending=[True, False]).head(VOCABULARY)
                  .with_row_index("id").select("word", "id").collect(engine="streaming"))
    terms = words.join(vocabulary.lazy(), on="word").select("row", "id").unique().collect(engine="streaming")
    left, right = terms.lazy().rename({"id": "l"}), terms.lazy().rename({"id": "r"})
    (left.join(right, on="row").filter(pl.col("l") < pl.col("r")).group_by("l", "r").agg(pl.len().alias("c"))
     .sink_parquet(out))
    print(pl.scan_parquet(out).select(pl.len()).collect().item())
else:
    sys.exit("no such peer")
