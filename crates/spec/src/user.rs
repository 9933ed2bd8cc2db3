//! Who a container runs as: ids and names against the image's own files.
//!
//! Works on bytes the caller read from the image (bounded, inside its root); nothing of
//! the host is consulted. A string made of digits is an id and is never looked up as a
//! name; an id beyond 2147483647 is an error, since some kernels and programs read it as
//! negative (CVE-2024-40635 and relatives).

use berth_model::container::{RunAs, SupplementalGroupsPolicy};

use crate::Error;

/// Largest id accepted (that of `chown` and of every container runtime: 2^31 - 1).
const MAX_ID: u32 = 2_147_483_647;
/// Most groups a process can have (`NGROUPS_MAX`, setgroups(2)).
const MAX_GROUPS: usize = 65_536;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Who a container runs as.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Every group of the process for setgroups(2): the primary one first, no doubles.
    pub groups: Vec<u32>,
    /// Home directory in the image's `/etc/passwd`; absolute, without NUL.
    pub home: Option<Vec<u8>>,
}

/// What the files of an image say about its users; a missing file is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserFiles<'a> {
    /// Bytes of `/etc/passwd` (passwd(5)).
    pub passwd: &'a [u8],
    /// Bytes of `/etc/group` (group(5)).
    pub group: &'a [u8],
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Finds who runs a container: whom the request names, else whom the image names, else root.
///
/// `image_user` is `config.User` of the image: empty, or a user and perhaps a group, each
/// a name or digits, joined by `:`.
pub fn resolve(
    run_as: &RunAs,
    image_user: &str,
    supplemental: &[u32],
    policy: SupplementalGroupsPolicy,
    files: UserFiles<'_>,
) -> Result<ResolvedUser, Error> {
    let (account, uid, gid) = match run_as {
        RunAs::Id { uid, gid } => {
            let uid = checked("user id", *uid)?;
            (by_uid(files, uid), uid, gid.map(|gid| checked("group id", gid)).transpose()?)
        }
        RunAs::Name { user, gid } => {
            let account = by_name(files, user)?;
            let uid = account.uid;
            (Some(account), uid, gid.map(|gid| checked("group id", gid)).transpose()?)
        }
        RunAs::Image => image_account(image_user, files)?,
    };
    let gid = gid.or(account.as_ref().map(|account| account.gid)).unwrap_or(0);
    let mut groups = vec![gid];
    if let (Some(account), SupplementalGroupsPolicy::Merge) = (&account, policy) {
        groups.extend(memberships(files, account.name));
    }
    for asked in supplemental {
        groups.push(checked("supplemental group id", *asked)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    if groups.len() > MAX_GROUPS {
        let value = groups.len().to_string();
        return Err(Error::IdRange { what: "number of groups", value });
    }
    Ok(ResolvedUser { uid, gid, groups, home: account.and_then(|account| home(account.home)) })
}

fn image_account<'a>(
    user: &str,
    files: UserFiles<'a>,
) -> Result<(Option<Account<'a>>, u32, Option<u32>), Error> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let gid = match group {
        // A trailing colon names no group, as docker has it.
        None | Some("") => None,
        Some(group) => Some(image_group(group, files)?),
    };
    let (account, uid) = match id("user id", user)? {
        Some(uid) => (by_uid(files, uid), uid),
        None if user.is_empty() => (by_uid(files, 0), 0),
        None => {
            let account = by_name(files, user)?;
            let uid = account.uid;
            (Some(account), uid)
        }
    };
    Ok((account, uid, gid))
}

fn image_group(group: &str, files: UserFiles<'_>) -> Result<u32, Error> {
    if let Some(gid) = id("group id", group)? {
        return Ok(gid);
    }
    let name = checked_name("group", group)?;
    groups(files.group)
        .find(|entry| entry.name == name)
        .map(|entry| entry.gid)
        .ok_or_else(|| Error::NoSuchId { what: "group", value: shown(group), file: GROUP })
}

/// The id that `text` is, if it is made of digits.
fn id(what: &'static str, text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        Ok(_) | Err(_) => Err(Error::IdRange { what, value: shown(text) }),
    }
}

fn checked(what: &'static str, id: u32) -> Result<u32, Error> {
    if id > MAX_ID {
        return Err(Error::IdRange { what, value: id.to_string() });
    }
    Ok(id)
}

/// Refuses names that no system writes, and those that other tools read as ids.
fn checked_name<'a>(what: &'static str, name: &'a str) -> Result<&'a [u8], Error> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | ',' | '/');
    let digits = name.bytes().all(|c| c.is_ascii_digit());
    if name.is_empty() || digits || name.starts_with(['-', '+']) || name.contains(odd) {
        return Err(Error::IdName { what, value: shown(name) });
    }
    Ok(name.as_bytes())
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn by_uid(files: UserFiles<'_>, uid: u32) -> Option<Account<'_>> {
    accounts(files.passwd).find(|account| account.uid == uid)
}

fn by_name<'a>(files: UserFiles<'a>, name: &str) -> Result<Account<'a>, Error> {
    let wanted = checked_name("user", name)?;
    accounts(files.passwd).find(|account| account.name == wanted).ok_or_else(|| Error::NoSuchId {
        what: "user",
        value: shown(name),
        file: PASSWD,
    })
}

fn memberships<'a>(files: UserFiles<'a>, user: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    groups(files.group)
        .filter(move |group| group.members.split(|c| *c == b',').any(|member| member == user))
        .map(|group| group.gid)
}

/// Lines that are not as passwd(5) has them are passed over, as glibc does.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    passwd.split(|c| *c == b'\n').filter_map(|line| {
        let mut fields = line.split(|c| *c == b':');
        let name = fields.next().filter(|name| !name.is_empty() && name[0] != b'#')?;
        fields.next()?;
        let uid = file_id(fields.next()?)?;
        let gid = file_id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid, gid, home })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|c| *c == b'\n').filter_map(|line| {
        let mut fields = line.split(|c| *c == b':');
        let name = fields.next().filter(|name| !name.is_empty() && name[0] != b'#')?;
        fields.next()?;
        let gid = file_id(fields.next()?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn file_id(text: &[u8]) -> Option<u32> {
    id("", std::str::from_utf8(text).ok()?).ok().flatten()
}

fn home(home: &[u8]) -> Option<Vec<u8>> {
    let good = home.starts_with(b"/") && !home.iter().any(u8::is_ascii_control);
    good.then(|| home.to_vec())
}

#[cfg(test)]
mod tests;
