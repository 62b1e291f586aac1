//! API keys: `bi_`, eight digits that name the key, and a secret of 32 random bytes. The file has a SHA-256 of the
//! secret. A slow hash, such as passwords need, would gain nothing: nobody can try 2^256 secrets, at whatever speed;
//! and it would cost each request what it costs an attacker.

use std::{
    collections::HashMap,
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Identity, Refused,
    file::{self, Lock, Stamp},
    record::{self, ID_CHARS, is_id},
};
use crate::units::Secret;

pub use super::record::{Moment, Record};

/// How a key begins. No token does.
pub const PREFIX: &str = "bi_";
/// What the issuer of every API key is called. No URL, so that it is no issuer of tokens.
pub const ISSUER: &str = "bigiron:keys";

const SECRET_CHARS: usize = 43; // 32 bytes in base64url
const FILE_BYTES_MAX: usize = 8 << 20;
/// Keys that came or went and are named in the log; of more it is said that there are.
const IDS_TOLD_MAX: usize = 10;

/// What a new key is to be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Who calls with it.
    pub subject: String,
    /// What it grants.
    pub scopes: Vec<String>,
    /// Groups that its subject is in.
    pub groups: Vec<String>,
    /// Until when it is good.
    pub expires: Option<Moment>,
    /// For people.
    pub note: String,
}

/// Makes a key and adds it to the file, which is made when there is none. The key itself is nowhere but in what is
/// returned.
///
/// # Errors
/// What is wrong with the wish or the file.
pub fn create(path: &Path, wanted: Wanted, now: SystemTime) -> Result<(Record, Secret), String> {
    let created = Moment::from_time(now)?;
    if wanted.expires.is_some_and(|expires| expires <= created) {
        return Err("the key would have expired before it is made; write a time in the future".into());
    }
    let Wanted { subject, scopes, groups, expires, note } = wanted;
    if subject.is_empty() {
        return Err("a key needs a subject: the name of who calls with it".into());
    }
    let record = Record { id: String::new(), sha256: String::new(), subject, scopes, groups, created, expires, note };
    change(path, |records| {
        let taken = |id: &str| records.iter().any(|record| record.id == id);
        let (id, secret) = loop {
            let (id, secret) = random()?;
            if !taken(&id) {
                break (id, secret);
            }
        };
        let key = Secret::new(format!("{PREFIX}{id}_{secret}"));
        let record = Record { id, sha256: hex(&digest(&secret)), ..record };
        records.push(record.clone());
        Ok((record, key))
    })
}

/// The keys in the file.
///
/// # Errors
/// What is wrong with the file.
pub fn list(path: &Path) -> Result<Vec<Record>, String> {
    let read = read(path)?;
    read.check_changeable(path)?;
    records(path, &read)
}

/// Takes a key out of the file.
///
/// # Errors
/// There is no such key, or something is wrong with the file.
pub fn revoke(path: &Path, id: &str) -> Result<Record, String> {
    if !path.exists() {
        return Err(format!("{} is not there, so that there is no key to revoke", path.display()));
    }
    change(path, |records| match records.iter().position(|record| record.id == id) {
        Some(place) => Ok(records.remove(place)),
        None => Err(format!("{} has no key {id:?}; `bigiron key list` shows those that there are", path.display())),
    })
}

/// The keys of a file, as a server has them in use.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    book: ArcSwap<Book>,
    seen: Mutex<Stamp>,
}

type Book = HashMap<Box<str>, Entry>;

#[derive(Debug)]
struct Entry {
    sha256: [u8; 32],
    identity: Arc<Identity>,
}

impl KeyFile {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let (records, stamp) = load(path)?;
        Ok(Self { path: path.to_owned(), book: ArcSwap::from_pointee(book(&records)?), seen: Mutex::new(stamp) })
    }

    /// How many keys there are, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.book.load().len()
    }

    /// Who calls with this key.
    pub(super) fn who(&self, key: &str, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        let (id, secret) = parts(key).ok_or(Refused::Format("an API key is bi_, 8 digits, _ and 43 characters"))?;
        let digest = digest(secret);
        let book = self.book.load();
        let entry = book.get(id).ok_or(Refused::UnknownApiKey)?;
        if !bool::from(entry.sha256.ct_eq(&digest)) {
            return Err(Refused::UnknownApiKey);
        }
        match entry.identity.expires_at().map(|expires| now.duration_since(expires)) {
            Some(Ok(ago)) => Err(Refused::ApiKeyExpired { id: id.to_owned(), ago_s: ago.as_secs() }),
            _ => Ok(Arc::clone(&entry.identity)),
        }
    }

    /// Reads the file again when it is another one than before. Says then what is new.
    pub(super) fn reload_if_changed(&self) -> Result<Option<String>, String> {
        let mut seen = self.seen.lock();
        if file::stamp(&self.path)? == *seen {
            return Ok(None);
        }
        let (records, stamp) = load(&self.path)?;
        let book = Arc::new(book(&records)?);
        let before = self.book.swap(Arc::clone(&book));
        *seen = stamp;
        let mut news = format!("{}: {} keys", self.path.display(), book.len());
        for (what, of, without) in [("new", &book, &before), ("gone", &before, &book)] {
            let mut ids: Vec<&str> = of.keys().filter(|id| !without.contains_key(*id)).map(AsRef::as_ref).collect();
            ids.sort_unstable();
            let more = if ids.len() > IDS_TOLD_MAX { " and others" } else { "" };
            if !ids.is_empty() {
                ids.truncate(IDS_TOLD_MAX);
                let _ = write!(news, ", {what}: {}{more}", ids.join(" "));
            }
        }
        Ok(Some(news))
    }
}

fn book(records: &[Record]) -> Result<Book, String> {
    let issuer: Arc<str> = ISSUER.into();
    let entry = |record: &Record| {
        let sha256 = record.digest().ok_or_else(|| format!("the key {} has no SHA-256", record.id))?;
        // No client: the next key of a subject is the same caller, so that keys can be changed without a break.
        let identity = Identity::new(
            Arc::clone(&issuer),
            &record.subject,
            None,
            record.scopes.iter().map(String::as_str),
            record.groups.iter().map(String::as_str),
            record.expires.map(Moment::time),
        )
        .with_key(&record.id);
        Ok((record.id.as_str().into(), Entry { sha256, identity: Arc::new(identity) }))
    };
    records.iter().map(entry).collect()
}

/// Id and secret of a key that has the form of one.
fn parts(key: &str) -> Option<(&str, &str)> {
    let (id, secret) = key.strip_prefix(PREFIX)?.split_once('_')?;
    let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (is_id(id) && secret.len() == SECRET_CHARS && secret.bytes().all(url_safe)).then_some((id, secret))
}

fn random() -> Result<(String, String), String> {
    let mut bytes = [0; ID_CHARS / 2 + 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    let (id, secret) = bytes.split_at(ID_CHARS / 2);
    Ok((hex(id), URL_SAFE_NO_PAD.encode(secret)))
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn load(path: &Path) -> Result<(Vec<Record>, Stamp), String> {
    let read = read(path)?;
    read.check_private(path)?;
    Ok((records(path, &read)?, read.stamp))
}

fn read(path: &Path) -> Result<file::Content, String> {
    file::read(path, FILE_BYTES_MAX).map_err(|why| format!("{why} (auth.keys_file; `bigiron key create` makes it)"))
}

fn records(path: &Path, read: &file::Content) -> Result<Vec<Record>, String> {
    let text = std::str::from_utf8(&read.bytes).map_err(|_| format!("{} is no text in UTF-8", path.display()))?;
    record::read(text).map_err(|why| format!("{}: {why}", path.display()))
}

/// Reads the file, changes it, and puts it back; nobody else does so at the same time.
fn change<T>(path: &Path, how: impl FnOnce(&mut Vec<Record>) -> Result<T, String>) -> Result<T, String> {
    let path = &file::behind_links(path);
    let lock = Lock::take(path)?;
    let mut records = if path.exists() { list(path)? } else { Vec::new() };
    let done = how(&mut records)?;
    let text = record::write(records).map_err(|why| format!("{}: {why}", path.display()))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("{} would have more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    file::replace(path, text.as_bytes(), &lock)?;
    Ok(done)
}
