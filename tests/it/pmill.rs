//! Runs the binary in a folder of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The binary under test.
fn binary() -> PathBuf {
    let path = match std::env::var_os("PMILL_BIN") {
        Some(path) => PathBuf::from(path),
        // This test is target/PROFILE/deps/it-…, the binary target/PROFILE/pmill.
        None => {
            let test = std::env::current_exe().unwrap();
            test.ancestors()
                .nth(2)
                .unwrap()
                .join(format!("pmill{}", std::env::consts::EXE_SUFFIX))
        }
    };
    assert!(
        path.is_file(),
        "no binary at {}: run `cargo build -p pmill-cli` first, or set PMILL_BIN",
        path.display()
    );
    path
}

/// A folder in which commands are run; paths in it can be relative.
pub struct Workplace {
    folder: TempDir,
}

/// What a command left.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its output.
    pub out: String,
    /// Its messages, with the folder's path replaced by `[here]`.
    pub err: String,
}

impl Workplace {
    /// An empty folder.
    pub fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    /// A folder with a sample corpus of `rows` captions in `corpus/`, two files.
    pub fn with_corpus(rows: u32) -> Self {
        let here = Self::new();
        here.ok(&format!(
            "sample-corpus --output corpus --rows {rows} --files 2 --words 1000"
        ));
        here
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command line cut at blanks.
    pub fn run(&self, line: &str) -> Ran {
        self.run_parts(line.split_whitespace())
    }

    /// Runs a command of given arguments.
    pub fn run_parts(&self, parts: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
        let mut command = Command::new(binary());
        command
            .args(parts)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .env("COLUMNS", "100");
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("PMILL_") {
                command.env_remove(key);
            }
        }
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let here = std::fs::canonicalize(self.folder.path()).unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr)
                .replace(&here.display().to_string(), "[here]")
                .replace(&self.folder.path().display().to_string(), "[here]"),
        }
    }

    /// Runs a command that must succeed, and gives its output.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "pmill {line}\n{}", ran.err);
        ran.out
    }

    /// Runs a command that must succeed, and gives the object that it prints.
    pub fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// Rows of a query.
    pub fn sql(&self, query: &str) -> Vec<serde_json::Value> {
        let ran = self.run_parts(["sql", "--warehouse", "wh", "--format", "json", query]);
        assert_eq!(ran.code, 0, "{query}\n{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    }

    /// Runs a command that the user can mend, and gives its message.
    pub fn refused(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (2, ""),
            "pmill {line}\n{}",
            ran.err
        );
        ran.err
    }

    /// The bytes of a table's only file.
    pub fn table_bytes(&self, job: &str, table: &str) -> Vec<u8> {
        let folder = self.path("wh").join(job).join(table);
        let files: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension() == Some(OsStr::new("parquet")))
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read(&files[0]).unwrap()
    }

    /// Copies a file of the folder.
    pub fn copy(&self, from: &str, to: &str) {
        let to = self.path(to);
        std::fs::create_dir_all(to.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::copy(self.path(from), to).unwrap();
    }
}
