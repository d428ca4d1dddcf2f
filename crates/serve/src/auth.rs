//! Who may in: a file of users with hashed secrets, tokens for the length of a session, and a brake
//! on guessing.
//!
//! A line of the file is `NAME:password:$argon2id$…` or `NAME:token:$argon2id$…`; `#` starts a
//! comment. A user may have several lines. A token is written `NAME.SECRET`, so that one look-up
//! finds its lines. Secrets that fitted are remembered as keyed hashes, so that Argon2's cost (which
//! makes guessing slow) is paid once for each secret and not for each request. Unknown users cost the
//! same as known ones.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::error::ServeError;

/// A user's name, as logs and limits know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User(pub Arc<str>);

impl User {
    /// Everybody, on a server that asks nobody.
    #[must_use]
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

/// What kind of secret a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// With a user name.
    Password,
    /// As `Authorization: Bearer NAME.SECRET`.
    Token,
}

impl Secret {
    fn word(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
        }
    }
}

/// Wrong secrets from one address for one name, and from one address in all, that are let through
/// within [`WINDOW`].
const WRONG_FOR_NAME: usize = 5;
const WRONG_FROM_ADDRESS: usize = 50;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and names that are watched at a time; the oldest are forgotten.
const WATCHED: usize = 10_000;
/// How long a token from a handshake is good.
const SESSION: Duration = Duration::from_secs(8 * 3600);
/// Tokens from handshakes at a time; the oldest are forgotten.
const SESSIONS: usize = 10_000;
const MAX_SECRET_BYTES: usize = 1024;

/// The lines of a users file.
#[derive(Debug, Default)]
pub struct Users {
    lines: HashMap<String, Vec<(Secret, String)>>,
}

impl Users {
    /// Parses the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// The first line that is not as it should be, by its number.
    pub fn parse(text: &str, path: &str) -> Result<Self, ServeError> {
        let mut users = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason| ServeError::Users {
                path: path.to_owned(),
                line: index + 1,
                reason,
            };
            let mut parts = line.splitn(3, ':');
            let (Some(name), Some(kind), Some(hash)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(wrong("expected NAME:password:HASH or NAME:token:HASH"));
            };
            if !is_name(name) {
                return Err(wrong(NAME_RULE));
            }
            let kind = match kind {
                "password" => Secret::Password,
                "token" => Secret::Token,
                _ => return Err(wrong("the second part is neither `password` nor `token`")),
            };
            let parsed = PasswordHash::new(hash).map_err(|_| {
                wrong("the hash does not parse; make one with pmill serve hash-password")
            })?;
            if parsed.algorithm != argon2::ARGON2ID_IDENT || parsed.hash.is_none() {
                return Err(wrong(
                    "the hash is not argon2id; make one with pmill serve hash-password",
                ));
            }
            users
                .lines
                .entry(name.to_owned())
                .or_default()
                .push((kind, hash.to_owned()));
        }
        if users.lines.is_empty() {
            return Err(ServeError::Users {
                path: path.to_owned(),
                line: 1,
                reason: "the file names no user, so nobody could come in",
            });
        }
        Ok(users)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Users::parse`], and when it cannot be read.
    pub fn read(path: &Path) -> Result<Self, ServeError> {
        let text = std::fs::read_to_string(path).map_err(|source| ServeError::Read {
            what: "the users file",
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }
}

const NAME_RULE: &str = "a user name is 1 to 64 letters, digits or _ @ -";

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_@-".contains(&byte))
}

/// The line of a users file for a secret.
///
/// # Errors
/// A name or secret that the file could not hold.
pub fn line(name: &str, kind: Secret, secret: &str) -> Result<String, ServeError> {
    if !is_name(name) {
        return Err(ServeError::Setting(format!("`{name}`: {NAME_RULE}")));
    }
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(ServeError::Setting(format!(
            "the secret must have 1 to {MAX_SECRET_BYTES} bytes"
        )));
    }
    let bug = |error: argon2::password_hash::Error| ServeError::Bug(error.to_string());
    let salt = SaltString::encode_b64(uuid::Uuid::new_v4().as_bytes()).map_err(bug)?;
    let hash = hasher()
        .hash_password(secret.as_bytes(), &salt)
        .map_err(bug)?;
    Ok(format!("{name}:{}:{hash}", kind.word()))
}

/// Argon2id with the crate's default cost (19 MiB, two passes); unit tests pay less.
fn hasher() -> Argon2<'static> {
    #[cfg(test)]
    if let Ok(cheap) = argon2::Params::new(64, 1, 1, None) {
        return Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cheap);
    }
    Argon2::default()
}

/// 256 bits from the system's random source, in hexadecimal.
#[must_use]
pub fn random_secret() -> String {
    // Two of them, since each spends six of its bits on its version.
    format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}

/// What a client showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Name and password.
    Basic {
        /// Name.
        name: String,
        /// Password.
        password: String,
    },
    /// A token.
    Bearer(String),
}

impl Credentials {
    /// Reads an `Authorization` header.
    ///
    /// # Errors
    /// [`ServeError::Message`] for anything but `Basic BASE64` and `Bearer TOKEN`.
    pub fn parse(header: &[u8]) -> Result<Self, ServeError> {
        let wrong = |text: &str| ServeError::Message(format!("authorization header: {text}"));
        let text = std::str::from_utf8(header).map_err(|_| wrong("it is not text"))?;
        let (scheme, rest) = text
            .split_once(' ')
            .ok_or_else(|| wrong("expected `Basic …` or `Bearer …`"))?;
        let rest = rest.trim();
        if rest.len() > 4 * MAX_SECRET_BYTES {
            return Err(wrong("it is too long"));
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            if rest.is_empty() {
                return Err(wrong("the token is empty"));
            }
            return Ok(Self::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(wrong("expected `Basic …` or `Bearer …`"));
        }
        let bytes = decode_base64(rest.as_bytes()).ok_or_else(|| wrong("it is not base64"))?;
        let text =
            String::from_utf8(bytes).map_err(|_| wrong("name and password are not UTF-8"))?;
        let (name, password) = text
            .split_once(':')
            .ok_or_else(|| wrong("expected NAME:PASSWORD in base64"))?;
        Ok(Self::Basic {
            name: name.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// Base64 of RFC 4648, with or without padding. `None` when it is not.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|byte| *byte != b'=')
        .map_or(0, |at| at + 1);
    if text.len() - end > 2 || end % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// Decides who may in. Without a users file everybody may, as [`User::anonymous`].
pub struct Gate {
    users: Option<Users>,
    /// Key of the hashes below, new in each process.
    key: [u8; 32],
    /// Hash of an unknown user's password: as costly to check as a real one.
    nobody: String,
    state: Mutex<State>,
    /// Argon2 takes 19 MiB and tens of milliseconds: few at a time.
    hashing: Semaphore,
}

#[derive(Default)]
struct State {
    /// Secrets that fitted: line of the users file → keyed hash of name and secret.
    fitted: HashMap<String, [u8; 32]>,
    /// Tokens of handshakes: keyed hash → who, until when.
    sessions: HashMap<[u8; 32], (User, Instant)>,
    session_order: VecDeque<[u8; 32]>,
    wrong: HashMap<(IpAddr, String), VecDeque<Instant>>,
}

impl Gate {
    /// A gate for these users; `None` lets everybody in.
    ///
    /// # Errors
    /// When Argon2 does not work.
    pub fn new(users: Option<Users>) -> Result<Self, ServeError> {
        let mut key = [0; 32];
        key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let nobody = match &users {
            None => String::new(),
            Some(_) => line("nobody", Secret::Password, &random_secret())?
                .splitn(3, ':')
                .nth(2)
                .unwrap_or_default()
                .to_owned(),
        };
        Ok(Self {
            users,
            key,
            nobody,
            state: Mutex::default(),
            hashing: Semaphore::new(2),
        })
    }

    /// Whether clients must say who they are.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.users.is_some()
    }

    /// Checks what a client at `address` showed.
    ///
    /// # Errors
    /// [`ServeError::Denied`] when it does not fit, [`ServeError::Throttled`] after too many of those.
    pub async fn check(
        &self,
        address: IpAddr,
        credentials: Option<&Credentials>,
    ) -> Result<User, ServeError> {
        let Some(users) = &self.users else {
            return Ok(match credentials {
                Some(Credentials::Basic { name, .. }) if is_name(name) => {
                    User(name.as_str().into())
                }
                _ => User::anonymous(),
            });
        };
        let (kind, name, secret) = match credentials {
            None => return Err(ServeError::Denied),
            Some(Credentials::Basic { name, password }) => {
                (Secret::Password, name.as_str(), password)
            }
            Some(Credentials::Bearer(token)) => {
                if let Some(user) = self.session(token) {
                    return Ok(user);
                }
                let name = token.split_once('.').map_or("", |(name, _)| name);
                (Secret::Token, name, token)
            }
        };
        if secret.len() > MAX_SECRET_BYTES {
            return Err(ServeError::Denied);
        }
        let none = Vec::new();
        let lines: Vec<&String> = users
            .lines
            .get(name)
            .unwrap_or(&none)
            .iter()
            .filter(|(of, _)| *of == kind)
            .map(|(_, hash)| hash)
            .collect();
        let seen = self.seal(&[kind.word(), name, secret]);
        {
            let state = self.state();
            let fits = lines.iter().any(|line| {
                let known = state.fitted.get(line.as_str()).copied().unwrap_or_default();
                bool::from(known.ct_eq(&seen))
            });
            if fits {
                return Ok(User(name.into()));
            }
        }
        // A name that cannot be is watched as one, so that the table stays small.
        let watched = if is_name(name) { name } else { "" };
        self.brake(address, watched)?;
        let mut hashes: Vec<String> = lines.into_iter().cloned().collect();
        if hashes.is_empty() {
            hashes.push(self.nobody.clone());
        }
        let _turn = self
            .hashing
            .acquire()
            .await
            .map_err(|_| ServeError::Stopping)?;
        let secret = secret.to_owned();
        let fitting = tokio::task::spawn_blocking(move || {
            hashes.into_iter().find(|hash| {
                PasswordHash::new(hash).is_ok_and(|hash| {
                    Argon2::default()
                        .verify_password(secret.as_bytes(), &hash)
                        .is_ok()
                })
            })
        })
        .await
        .map_err(|error| ServeError::Bug(error.to_string()))?;
        let mut state = self.state();
        match fitting {
            // `nobody` is not in the file: guessing its secret opens nothing.
            Some(line) if users.lines.contains_key(name) => {
                state.fitted.insert(line, seen);
                state.wrong.remove(&(address, watched.to_owned()));
                Ok(User(name.into()))
            }
            _ => {
                let now = Instant::now();
                if state.wrong.len() >= WATCHED {
                    state
                        .wrong
                        .retain(|_, times| times.back().is_some_and(|last| now - *last < WINDOW));
                    if state.wrong.len() >= WATCHED {
                        state.wrong.clear();
                    }
                }
                for name in [watched, ANY_NAME] {
                    let times = state.wrong.entry((address, name.to_owned())).or_default();
                    times.push_back(now);
                    if times.len() > WRONG_FROM_ADDRESS {
                        times.pop_front();
                    }
                }
                Err(ServeError::Denied)
            }
        }
    }

    /// A token that stands for this user until it expires.
    #[must_use]
    pub fn open_session(&self, user: &User) -> String {
        let token = random_secret();
        let sealed = self.seal(&["session", &token]);
        let mut state = self.state();
        while state.session_order.len() >= SESSIONS {
            if let Some(oldest) = state.session_order.pop_front() {
                state.sessions.remove(&oldest);
            }
        }
        state.session_order.push_back(sealed);
        state
            .sessions
            .insert(sealed, (user.clone(), Instant::now() + SESSION));
        token
    }

    fn session(&self, token: &str) -> Option<User> {
        let sealed = self.seal(&["session", token]);
        let state = self.state();
        // The table is keyed by a keyed hash: how long the look-up takes tells nothing of the token.
        let (user, until) = state.sessions.get(&sealed)?;
        (Instant::now() < *until).then(|| user.clone())
    }

    fn brake(&self, address: IpAddr, name: &str) -> Result<(), ServeError> {
        let mut state = self.state();
        let now = Instant::now();
        for (name, most) in [(name, WRONG_FOR_NAME), (ANY_NAME, WRONG_FROM_ADDRESS)] {
            let Some(times) = state.wrong.get_mut(&(address, name.to_owned())) else {
                continue;
            };
            while times.front().is_some_and(|first| now - *first >= WINDOW) {
                times.pop_front();
            }
            if times.len() >= most
                && let Some(first) = times.get(times.len() - most)
            {
                let wait = WINDOW.saturating_sub(now - *first);
                return Err(ServeError::Throttled {
                    seconds: wait.as_secs() + 1,
                });
            }
        }
        Ok(())
    }

    fn seal(&self, parts: &[&str]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one call: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands for all names from one address; no user can have it.
const ANY_NAME: &str = "*";

#[cfg(test)]
mod tests;
