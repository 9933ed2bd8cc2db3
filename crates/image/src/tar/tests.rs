//! The reader against archives well-formed and not.

use super::build::{Fields, Tar};
use super::reader::ReadError;
use super::{Archive, Entry, Kind, Time};
use crate::BadArchive;

/// Reads everything: entries and their data.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, BadArchive> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    let bad = |error| match error {
        ReadError::Bad(bad) => bad,
        ReadError::Io(error) => panic!("{error}"),
    };
    while let Some(entry) = archive.next_entry().map_err(bad)? {
        let (mut data, mut buffer) = (Vec::new(), [0; 100]);
        loop {
            match archive.read_data(&mut buffer).map_err(bad)? {
                0 => break,
                read => data.extend_from_slice(&buffer[..read]),
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

#[track_caller]
fn one(tar: Tar) -> Entry {
    let mut all = read(&tar.finish()).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).0
}

#[track_caller]
fn refused(tar: Tar, why: BadArchive) {
    assert_eq!(read(&tar.finish()), Err(why));
}

#[test]
fn entries_have_what_their_headers_say() {
    let tar = Tar::new().directory("d/", 0o1777).file("d/f", b"content").symlink("l", "d/f");
    let all = read(&tar.finish()).unwrap();
    let kinds: Vec<_> = all.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(kinds, [Kind::Directory, Kind::File, Kind::Symlink]);
    assert_eq!(all[0].0.mode, 0o1777);
    assert_eq!((all[1].0.path.as_slice(), all[1].1.as_slice()), (&b"d/f"[..], &b"content"[..]));
    assert_eq!(all[2].0.link, b"d/f");
    assert_eq!(all[1].0.mtime, Time { seconds: 1_700_000_000, nanoseconds: 0 });
}

#[test]
fn data_that_nobody_reads_is_skipped() {
    let bytes = Tar::new().file("a", &[7; 1000]).file("b", b"b").finish();
    let mut archive = Archive::new(bytes.as_slice());
    assert_eq!(archive.next_entry().unwrap().unwrap().path, b"a");
    assert_eq!(archive.next_entry().unwrap().unwrap().path, b"b");
    assert!(archive.next_entry().unwrap().is_none());
    assert!(archive.next_entry().unwrap().is_none());
}

#[test]
fn prefix_and_name_are_joined_in_ustar_only() {
    let fields = Fields { name: b"n", prefix: b"p/q", ..Fields::default() };
    assert_eq!(one(Tar::new().entry(&fields)).path, b"p/q/n");
    assert_eq!(one(Tar::new().entry(&Fields { magic: b"ustar  \0", ..fields })).path, b"n");
}

#[test]
fn extended_headers_win_over_the_header() {
    let tar = Tar::new().pax(&[
        ("path", b"long/name"),
        ("uid", b"5000000000"),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.a", b"=\n\0 anything"),
        ("comment", b"ignored"),
    ]);
    refused(tar.clone().file("x", b""), BadArchive::Number("uid"));
    let tar = Tar::new().pax(&[
        ("path", b"long/name"),
        ("uid", b"3000000000"),
        ("mtime", b"-1.25"),
        ("atime", b"12.000000001999"),
        ("SCHILY.xattr.user.a", b"=\n\0 anything"),
    ]);
    let entry = one(tar.file("x", b""));
    assert_eq!(entry.path, b"long/name");
    assert_eq!(entry.uid, 3_000_000_000);
    assert_eq!(entry.mtime, Time { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.atime, Some(Time { seconds: 12, nanoseconds: 1 }));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"=\n\0 anything".to_vec())].into());
}

#[test]
fn an_extended_header_concerns_one_entry() {
    let bytes = Tar::new().pax(&[("path", b"p")]).file("a", b"").file("b", b"").finish();
    let all = read(&bytes).unwrap();
    assert_eq!((all[0].0.path.as_slice(), all[1].0.path.as_slice()), (&b"p"[..], &b"b"[..]));
}

#[test]
fn gnu_long_names_and_links_are_read() {
    let (name, link) = ("n".repeat(3000), "l".repeat(2000));
    let tar = Tar::new()
        .extended(b'L', format!("{name}\0").as_bytes())
        .extended(b'K', format!("{link}\0").as_bytes())
        .symlink("short", "short");
    let entry = one(tar);
    assert_eq!((entry.path, entry.link), (name.into_bytes(), link.into_bytes()));
}

#[test]
fn large_numbers_come_in_base_256() {
    let mut size = [0; 12];
    size[0] = 0x80;
    size[11] = 3;
    let fields = Fields { name: b"f", size: Some(size), data: b"abc", ..Fields::default() };
    assert_eq!(one(Tar::new().entry(&fields)).size, 3);
}

#[test]
fn a_size_in_an_extended_header_moves_the_next_entry() {
    let hidden = Tar::new().file("hidden", b"");
    let hidden = hidden.bytes();
    let zero = Fields { name: b"f", size: Some(*b"00000000000\0"), ..Fields::default() };
    let size = hidden.len().to_string();
    let tar = Tar::new().pax(&[("size", size.as_bytes())]).entry(&zero).raw(&hidden);
    let all = read(&tar.file("next", b"").finish()).unwrap();
    let paths: Vec<_> = all.iter().map(|(entry, _)| entry.path.as_slice()).collect();
    assert_eq!(paths, [&b"f"[..], b"next"]);
}

#[test]
fn an_old_directory_is_an_empty_file_with_a_slash() {
    let old = Fields { name: b"d/", kind: 0, magic: b"", ..Fields::default() };
    assert_eq!(one(Tar::new().entry(&old)).kind, Kind::Directory);
}

#[test]
fn an_archive_may_end_with_its_stream() {
    let whole = Tar::new().file("a", b"x");
    assert_eq!(read(&whole.clone().bytes()).unwrap().len(), 1);
    assert_eq!(read(&whole.clone().raw(&[0; 512]).bytes()).unwrap().len(), 1);
    assert_eq!(read(&whole.raw(&[0; 1024]).raw(b"anything").bytes()).unwrap().len(), 1);
    assert!(read(b"").unwrap().is_empty());
}

#[test]
fn a_global_comment_changes_nothing() {
    let tar = Tar::new().extended(b'g', b"20 comment=whatever\n").file("a", b"");
    assert_eq!(one(tar).path, b"a");
}

/// teeth: crates/image/src/tar/reader.rs: `size != 0 => Err(` → `false => Err(`.
#[test]
fn i2_what_readers_disagree_on_is_refused() {
    let size = Some(*b"00000001000\0");
    for kind in [b'2', b'3', b'4', b'5', b'6'] {
        let fields = Fields { name: b"n", link: b"l", kind, size, ..Fields::default() };
        refused(Tar::new().entry(&fields), BadArchive::Ambiguous);
    }
    let pax = Tar::new().pax(&[("path", b"a")]);
    refused(pax.clone().extended(b'L', b"b\0").file("c", b""), BadArchive::Ambiguous);
    refused(pax.pax(&[("path", b"b")]).file("c", b""), BadArchive::Ambiguous);
    refused(Tar::new().file("d/", b""), BadArchive::Ambiguous);
    refused(Tar::new().extended(b'g', b"10 path=a\n").file("c", b""), BadArchive::Global);
    refused(Tar::new().extended(b'g', b"10 size=9\n").file("c", b""), BadArchive::Global);
    refused(Tar::new().raw(&[0; 512]).file("c", b""), BadArchive::AfterEnd);
    refused(Tar::new().pax(&[("path", b"a\0b")]).file("c", b""), BadArchive::Nul);
    refused(Tar::new().extended(b'L', b"a\0b\0").file("c", b""), BadArchive::Nul);
}

#[test]
fn numbers_that_are_none_are_refused() {
    for bad in [*b"0000000001x\0", *b"-0000000001\0", *b"00 00000001\0", *b"00000000008\0"] {
        let fields = Fields { name: b"f", size: Some(bad), ..Fields::default() };
        refused(Tar::new().entry(&fields), BadArchive::Number("size"));
    }
    let negative = Fields { name: b"f", size: Some([0xff; 12]), ..Fields::default() };
    refused(Tar::new().entry(&negative), BadArchive::Number("size"));
    let mut huge = [0x7f; 12];
    huge[0] = 0xbf;
    let huge = Fields { name: b"f", size: Some(huge), ..Fields::default() };
    refused(Tar::new().entry(&huge), BadArchive::Number("size"));
    for bad in ["-1", "1.5", "+1", "", "0x1", "99999999999999999999"] {
        if bad.is_empty() {
            continue; // an empty value takes the header's own
        }
        let tar = Tar::new().pax(&[("size", bad.as_bytes())]).file("f", b"");
        refused(tar, BadArchive::Number("size"));
    }
    let tar = Tar::new().pax(&[("uid", b"4294967295")]).file("f", b"");
    refused(tar, BadArchive::Number("uid"));
}

#[test]
fn as_many_attributes_as_fit_a_header_are_read_in_no_time() {
    let names: Vec<_> = (0..45_000).map(|number| format!("SCHILY.xattr.{number:05}")).collect();
    let records: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let tar = Tar::new().pax(&records);
    let started = std::time::Instant::now();
    assert_eq!(one(tar.file("f", b"")).xattrs.len(), names.len());
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn damaged_records_are_refused() {
    for bad in [
        &b"x"[..],
        b"5 a=b\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"6 a=b\nx",
        b"6 ab=\0",
        b"5 =b\n",
        b"99999999999999999999999999 a=b\n",
        b"7 a\0=b\n",
    ] {
        refused(Tar::new().extended(b'x', bad).file("f", b""), BadArchive::Pax);
    }
}

#[test]
fn sparse_and_unknown_entries_are_refused_by_name() {
    let kind = |kind| Tar::new().entry(&Fields { name: b"f", kind, ..Fields::default() });
    refused(kind(b'S'), BadArchive::Sparse);
    refused(Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("f", b""), BadArchive::Sparse);
    for flag in *b"DMVNA89" {
        refused(kind(flag), BadArchive::Type(flag));
    }
}

#[test]
fn a_wrong_checksum_is_refused() {
    let mut bytes = Tar::new().file("f", b"").finish();
    bytes[0] ^= 1;
    assert_eq!(read(&bytes), Err(BadArchive::Checksum));
}

#[test]
fn an_archive_cut_anywhere_inside_an_entry_is_refused() {
    let bytes = Tar::new().pax(&[("path", b"a")]).file("f", &[1; 700]).bytes();
    for length in (1..bytes.len()).step_by(37) {
        assert_eq!(read(&bytes[..length]), Err(BadArchive::Truncated), "{length}");
    }
}

#[test]
fn an_extended_header_is_read_to_its_limit_only() {
    let fields =
        Fields { name: b"x", kind: b'x', size: Some(*b"77777777777\0"), ..Fields::default() };
    let tar = Tar::new().entry(&fields);
    refused(tar, BadArchive::ExtendedTooLarge(0o77_777_777_777));
}

/// Bent headers must end in an error or an entry, never in a panic or a loop.
#[test]
fn i4_no_header_panics_the_reader() {
    let good = Tar::new().pax(&[("path", b"a"), ("mtime", b"1.5")]).file("f", b"data").finish();
    let mut random = 1_u64;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(random >> 40).unwrap() % bytes.len();
            bytes[at] = u8::try_from((random >> 32) & 0xff).unwrap();
        }
        for start in (0..bytes.len() - 512).step_by(512) {
            rewrite_checksum(&mut bytes[start..start + 512]);
        }
        drop(read(&bytes));
    }
}

fn rewrite_checksum(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
