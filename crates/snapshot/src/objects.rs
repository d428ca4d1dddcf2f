//! Where an output goes that is not on a file system: a prefix of an object store.
//!
//! An object appears whole when its upload is completed, and only then; nothing can be renamed. Parts of an
//! upload come in any order, from any process that knows the upload's name.

use crate::source::SourceFile;
use std::io;

/// A prefix of an object store, to write to. Names are relative to it and may hold slashes.
///
/// All calls may be repeated, and are tried again by the backend while the store is away; an error that may
/// pass says `TimedOut` or the like, as in [`crate::RangeSource`].
pub trait ObjectFolder: Send + Sync + std::fmt::Debug {
    /// The prefix as people write it: a URI.
    fn location(&self) -> String;

    /// All objects whose names begin with `prefix`, at any depth, in any order.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn list(&self, prefix: &str) -> io::Result<Vec<SourceFile>>;

    /// Size and version of an object; `None` when it is not there.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn stat(&self, name: &str) -> io::Result<Option<SourceFile>>;

    /// The content of a small object; `None` when it is not there.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Puts a small object, in the place of another if there is one.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()>;

    /// Puts a small object if there is none of that name; `false` when there is.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn put_new(&self, name: &str, bytes: Vec<u8>) -> io::Result<bool>;

    /// Removes an object; none there is no error.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn delete(&self, name: &str) -> io::Result<()>;

    /// Begins the upload of an object in parts, and gives the upload's name.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn begin(&self, name: &str) -> io::Result<String>;

    /// Uploads one part (numbers from 0), in the place of an earlier one of that number; gives its name.
    ///
    /// # Errors
    /// `NotFound` when there is no such upload (any more).
    fn put_part(&self, name: &str, upload: &str, part: usize, bytes: Vec<u8>)
    -> io::Result<String>;

    /// Makes the object of its parts, in order.
    ///
    /// # Errors
    /// `NotFound` when there is no such upload (any more).
    fn complete(&self, name: &str, upload: &str, parts: &[String]) -> io::Result<()>;

    /// Gives an upload up; one that is gone is no error.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn abort(&self, name: &str, upload: &str) -> io::Result<()>;

    /// The least bytes of a part that is not an object's last. S3 takes none below 5 MiB, and 10,000 parts.
    fn part_bytes(&self) -> u64 {
        8 << 20
    }
}
