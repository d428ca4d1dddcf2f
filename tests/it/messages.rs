//! What the user reads when something is wrong, and the help text: snapshots, to be read when they change.

use insta::assert_snapshot;

use crate::pmill::Workplace;

const COUNT: &str = "count --warehouse wh --name j --input corpus --text TEXT";

#[test]
fn an_unknown_column() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("count --warehouse wh --name j --input corpus --text TEXTS"), @"pmill: cannot read `[here]/corpus/part-00000.parquet`: no column `TEXTS` (did you mean `TEXT`?); it has: SAMPLE_ID, URL, TEXT");
}

#[test]
fn an_input_that_is_not_there() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("count --warehouse wh --name j --input corpsu --text TEXT"), @"pmill: input `corpsu`: no such file or folder");
}

#[test]
fn a_glob_without_matches() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("count --warehouse wh --name j --input corpus/*.parq --text TEXT"), @"pmill: input `corpus/*.parq`: the glob matches no file");
}

#[test]
fn a_column_of_numbers() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("count --warehouse wh --name j --input corpus --text SAMPLE_ID"), @"pmill: cannot read `[here]/corpus/part-00000.parquet`: column `SAMPLE_ID` has type Int64, expected text or a list of text");
}

#[test]
fn a_window_setting_with_documents() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused(&format!("{COUNT} --window 5")), @"pmill: --window goes with --context window, and the context is document");
}

#[test]
fn a_memory_limit_too_small() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused(&format!("{COUNT} --memory-limit 8MiB")), @"pmill: memory limit of 8.0 MiB is too small: pmill needs 64.0 MiB at least");
}

#[test]
fn an_unknown_tokenizer() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused(&format!("{COUNT} --tokenizer word")), @r#"
    error: invalid value 'word' for '--tokenizer <T>': unknown tokenizer `word`, expected words, whitespace, icu, qu-xie or huggingface:PATH

    For more information, try '--help'.
    "#);
}

#[test]
fn a_job_name_that_sql_could_not_say() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("count --warehouse wh --name My-Job --input corpus --text TEXT"), @"pmill: `My-Job` is not a job name: use lower-case letters, digits and `_`, and start with a letter (job names are schema names in SQL, where `public` and `information_schema` are taken)");
}

#[test]
fn other_settings_than_before() {
    let here = Workplace::with_corpus(20);
    here.ok(&format!("{COUNT} -q"));
    assert_snapshot!(here.refused(&format!("{COUNT} --min-count 2 --vocab-size 9")), @r#"
    pmill: job `j` was counted with other settings; give it another --name, or the settings it has
      vocabulary.size: 9 here, not set there
      vocabulary.min_count: 2 here, 1 there
    "#);
}

#[test]
fn a_job_that_is_not_there() {
    let here = Workplace::with_corpus(20);
    here.ok("count --warehouse wh --name words --input corpus --text TEXT -q");
    assert_snapshot!(here.refused("score --warehouse wh --name word"), @"pmill: the warehouse `[here]/wh` has no job `word`; it has: words");
}

#[test]
fn an_unknown_table() {
    let here = Workplace::with_corpus(20);
    here.ok("count --warehouse wh --name words --input corpus --text TEXT -q");
    let ran = here.run_parts(["sql", "--warehouse", "wh", "SELECT 1 FROM words.pair"]);
    assert_eq!(ran.code, 2);
    assert_snapshot!(ran.err, @"pmill: no table `words.pair` (did you mean `words.pairs`?); the warehouse has: words.outside, words.pairs, words.sources, words.vocab");
}

#[test]
fn a_table_of_scores_before_scoring() {
    let here = Workplace::with_corpus(20);
    here.ok("count --warehouse wh --name words --input corpus --text TEXT -q");
    let ran = here.run_parts(["sql", "--warehouse", "wh", "SELECT 1 FROM words.pmi"]);
    assert_eq!(ran.code, 2);
    assert_snapshot!(ran.err, @"pmill: no table `words.pmi` (did you mean `words.pairs`?); the warehouse has: words.outside, words.pairs, words.sources, words.vocab");
}

#[test]
fn a_query_that_would_change_a_table() {
    let here = Workplace::with_corpus(20);
    let ran = here.run_parts(["sql", "--warehouse", "wh", "DROP TABLE words.pairs"]);
    assert_eq!(ran.code, 2);
    assert_snapshot!(ran.err, @"pmill: Error during planning: DDL not supported: DropTable");
}

#[test]
fn a_folder_that_is_not_empty() {
    let here = Workplace::with_corpus(20);
    assert_snapshot!(here.refused("sample-corpus --output corpus"), @"pmill: `corpus` is not empty; give a new folder");
}

#[test]
fn an_unknown_key_of_a_pipeline_file() {
    let here = Workplace::new();
    std::fs::write(here.path("p.toml"), "name = 'p'\n[context]\nwindw = 5\n").unwrap();
    assert_snapshot!(here.refused("run p.toml"), @r#"
    pmill: `p.toml`: TOML parse error at line 3, column 1
      |
    3 | windw = 5
      | ^^^^^
    unknown field `windw`, expected one of `kind`, `window`, `weight`, `side`, `out_of_vocabulary`, `max_features_per_document`, `subsample`
    did you mean `window`?
    "#);
}

#[test]
fn the_help_of_count() {
    let help = Workplace::new().ok("count --help");
    // Blank lines of the help hold blanks.
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    assert_snapshot!(lines.join("
"), @r#"
    Count co-occurrences of a Parquet corpus into a table

    Usage: pmill count [OPTIONS] --warehouse <FOLDER> --name <JOB> --text <COLUMN>

    Options:
          --warehouse <FOLDER>
              Folder of the warehouse; made if it is not there

              [env: PMILL_WAREHOUSE=]

          --name <JOB>
              Name of the job; the table's schema in SQL

          --input <URI>...
              Parquet files: paths, globs, folders, file:// URIs

          --recount <FILE>
              A counted file that has changed: take its old counts out, count it anew

          --old <FILE>
              Where the bytes are that were counted; one for each --recount, in the same order

          --text <COLUMN>
              Column that holds the text: a name, a path through structs (meta.caption), or an SQL
              expression over columns that gives text or a list of text

          --where <CONDITION>
              Count only rows for which this SQL condition over the file's columns is true

          --slice <EXPR>
              Keep the counts apart by this value, as year or source: a column, or an SQL expression
              over columns; the vocabulary is one for all

          --memory-limit <SIZE>
              Most memory for the process, as 512MiB or 4GiB [default: half of what there is]

              [env: PMILL_MEMORY_LIMIT=]

          --threads <N>
              Threads [default: all cores]

              [env: PMILL_THREADS=]

          --work-dir <FOLDER>
              Folder for work in progress on warehouses in object stores [default: in the user's cache]

              [env: PMILL_WORK_DIR=]

          --json
              Print one JSON object on stdout

      -q, --quiet
              Print no progress and no summary

      -v, --verbose...
              Log what happens, to stderr; -vv for more

      -h, --help
              Print help (see a summary with '-h')

    Features:
          --tokenizer <T>
              words, whitespace, icu, qu-xie or huggingface:PATH

              [default: words]

          --stop-words <LIST>
              Words to drop: english, none or a file

          --min-length <N>
              Drop features of fewer code points

          --drop-numeric
              Drop numbers

          --lemma <RULE>
              Base forms: wordnet:FOLDER (Debian's wordnet-base has /usr/share/wordnet) or file:PATH

          --phrases <FILE>
              File of phrases, one a line; each becomes one feature, other words stay

          --concepts <FILE>
              File of concepts, one a line; nothing else is a feature

    Vocabulary:
          --vocab-size <N>
              Keep the N most frequent terms

          --min-count <N>
              Keep terms that occur at least this often

              [default: 1]

          --vocab <FILE>
              Count just the terms of this file, one a line

    Sketch, for tables that cannot be held:
          --exact-terms <H>
              Count pairs of the H most frequent terms exactly; all others go into a count-min sketch,
              which gives estimates on request (the SQL function `estimate`)

          --sketch-buckets <W>
              Cells of a hash row of the sketch, 8 bytes each [default: 1048576]

          --sketch-hashes <D>
              Hash rows of the sketch [default: 5]

    Context:
          --context <CONTEXT>
              Where features meet: in the same row, or near each other

              [default: document]
              [possible values: document, window]

          --window <N>
              Window: how many tokens apart [default: 10]

          --weight <WEIGHT>
              Window: weight of a pair d tokens apart [default: uniform]

              Possible values:
              - uniform:  1
              - harmonic: 1/d, as GloVe
              - dynamic:  (W-d+1)/W, as word2vec on average

          --side <SIDE>
              Window: which neighbours are a token's context [default: symmetric]

              [possible values: symmetric, left, right]

          --out-of-vocabulary <OUT_OF_VOCABULARY>
              Window: tokens outside the vocabulary are taken out first, or keep their place [default:
              removed]

              [possible values: removed, gap]

          --subsample <T>
              Window: word2vec's subsampling of frequent tokens; 1e-5 is usual

          --max-features-per-document <N>
              Document: use at most the N most frequent distinct features of a row

          --on-bad-file <ON_BAD_FILE>
              What to do with a file that cannot be read

              Possible values:
              - fail: End the job, commit nothing
              - skip: Leave the whole file out and list it in `sources`

              [default: fail]

          --dry-run
              Show inputs, plan and outputs; write nothing

    Units:
          --shard-count <N>
              Do one shard's part of the job; commit with `pmill commit` when all shards are done

          --shard-index <I>
              Which shard, from 0 [default: JOB_COMPLETION_INDEX, or SLURM_ARRAY_TASK_ID]

          --phase <PHASE>
              End after the shard's part of one phase, without waiting for the other shards

              Possible values:
              - terms:  Read the input, collect terms
              - count:  Count into runs
              - reduce: Sum runs into table files

          --take-over-after <SECONDS>
              Do other shards' units when nothing has come for so long

              [default: 60]

          --patience <SECONDS>
              Give up (exit code 75) when nothing has come for so long

              [default: 3600]

          --unit-size <SIZE>
              Units: bytes of text of one, decompressed

              [default: 256MiB]

          --unit-timeout <SECONDS>
              Units: seconds that one may take

              [default: 3600]

          --unit-attempts <N>
              Units: times that one may end its process before the job gives it up

              [default: 5]

          --scratch <FOLDER>
              Units: folder for temporary files [default: the system's]

              [env: PMILL_SCRATCH=]

    Cluster:
          --cluster <URL>
              Run the units on a cluster: the scheduler's URL, http://HOST:PORT or https://HOST:PORT

              [env: PMILL_CLUSTER=]

          --cluster-patience <SECONDS>
              Give up (exit code 75) when nothing has come from the cluster for so long

              [default: 600]

          --tls-ca <FILE>
              TLS: file of certificates (PEM) that the scheduler must have one of

              [env: PMILL_TLS_CA=]

          --tls-client-cert <FILE>
              Mutual TLS: own certificate (PEM)

              [env: PMILL_TLS_CLIENT_CERT=]

          --tls-client-key <FILE>
              Mutual TLS: key of the own certificate (PEM)

              [env: PMILL_TLS_CLIENT_KEY=]

          --token-file <FILE>
              File of the token that the scheduler asks for

              [env: PMILL_TOKEN_FILE=]

    Examples:
      # Captions: which words stand in the same caption
      pmill count --warehouse wh --name captions --input captions/ --text TEXT --vocab-size 20000

      # Documents: GloVe's counts, window 10, weight 1/distance
      pmill count --warehouse wh --name web --input 'crawl/*.parquet' --text text \
          --context window --window 10 --weight harmonic --tokenizer whitespace

      # A new crawl into the same table: only new files are counted
      pmill count --warehouse wh --name web --input 'crawl/*.parquet' crawl-2/ --text text \
          --context window --window 10 --weight harmonic --tokenizer whitespace

      # A vocabulary whose pairs no disk holds: exact for 20,000 terms, estimates for the others
      pmill count --warehouse wh --name wide --input crawl/ --text text --vocab-size 1000000 \
          --exact-terms 20000 --sketch-buckets 67108864 --memory-limit 8GiB

      # One of 8 shards, as a Kubernetes Indexed Job or a Slurm array runs it; then `pmill commit`
      pmill count --warehouse wh --name web --input crawl/ --text text --shard-count 8

      # What would happen, without doing it
      pmill count --warehouse wh --name web --input crawl/ --text text --dry-run
    "#);
}
