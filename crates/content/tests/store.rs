//! The store as its callers see it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use berth_content::{BlobInfo, Content, Error};
use berth_model::{Digest, ErrorKind};
use tempfile::TempDir;

fn store() -> (TempDir, Content) {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let content = Content::open(directory.path().join("content")).expect("a store opens");
    (directory, content)
}

fn blob_path(directory: &TempDir, digest: &Digest) -> PathBuf {
    directory.path().join("content/blobs/sha256").join(digest.hex())
}

#[track_caller]
fn check_nothing_is_left(directory: &TempDir, content: &Content) {
    assert_eq!(content.list().expect("a list").count(), 0);
    let ingests = fs::read_dir(directory.path().join("content/ingest")).expect("a directory");
    assert_eq!(ingests.count(), 0);
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length")
}

#[test]
fn a_blob_goes_in_and_comes_out() {
    let (_directory, content) = store();
    let bytes = vec![7; 20 << 20];
    let digest = Digest::of(&bytes);
    let witness = content.witness().unwrap();
    let mut ingest = content.ingest(&digest, size(&bytes)).unwrap();
    for piece in bytes.chunks(1 << 20) {
        ingest.write(piece).unwrap();
        assert!(!content.exists(&digest).unwrap(), "visible before its commit");
    }
    assert_eq!(ingest.written(), ingest.size());
    ingest.commit().unwrap();
    witness.sync().unwrap();

    let mut found = Vec::new();
    let mut blob = content.open_blob(&digest).unwrap();
    blob.file.read_to_end(&mut found).unwrap();
    assert_eq!((found, blob.size), (bytes.clone(), size(&bytes)));
    assert_eq!(content.size(&digest).unwrap(), Some(size(&bytes)));
    let listed: Vec<_> = content.list().unwrap().map(Result::unwrap).collect();
    assert_eq!(listed, [BlobInfo { digest, size: size(&bytes) }]);
}

#[test]
fn a_small_blob_is_put_and_read_under_a_limit() {
    let (_directory, content) = store();
    let digest = content.put(b"{}").unwrap();
    assert_eq!(content.read(&digest, 2).unwrap(), b"{}");
    let error = content.read(&digest, 1).unwrap_err();
    assert!(matches!(error, Error::OverLimit { size: 2, limit: 1, .. }), "{error}");
    let empty = content.put(b"").unwrap();
    assert_eq!(content.read(&empty, 0).unwrap(), b"");
}

#[test]
fn removing_twice_is_no_error_and_readers_go_on() {
    let (_directory, content) = store();
    let digest = content.put(b"bytes").unwrap();
    let mut open = content.open_blob(&digest).unwrap();
    let trash = content.detach(&digest).unwrap().unwrap();
    assert!(content.detach(&digest).unwrap().is_none());
    assert_eq!(content.usage().unwrap(), (4096, 1), "its bytes are still there");
    trash.empty().unwrap();
    assert_eq!(content.usage().unwrap(), (0, 0));
    let mut found = String::new();
    open.file.read_to_string(&mut found).unwrap();
    assert_eq!(found, "bytes");
    let error = content.read(&digest, 10).unwrap_err();
    assert!(matches!(error, Error::NotFound(absent) if absent == digest), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn what_was_detached_and_never_emptied_goes_when_the_store_is_opened_next() {
    let (directory, content) = store();
    let digest = content.put(b"bytes").unwrap();
    drop(content.detach(&digest).unwrap());
    drop(content);
    let content = Content::open(directory.path().join("content")).unwrap();
    check_nothing_is_left(&directory, &content);
}

#[test]
fn a_blob_that_was_changed_on_disk_is_found_out() {
    let (directory, content) = store();
    let digest = content.put(b"bytes").unwrap();
    content.verify(&digest).unwrap();
    fs::write(blob_path(&directory, &digest), b"Bytes").unwrap();
    let error = content.verify(&digest).unwrap_err();
    assert!(matches!(error, Error::Damaged { expected, .. } if expected == digest), "{error}");
    let absent = Digest::of(b"absent");
    assert!(matches!(content.verify(&absent).unwrap_err(), Error::NotFound(_)));
}

#[test]
fn other_bytes_than_promised_never_become_visible() {
    let (directory, content) = store();
    let (wanted, came) = (Digest::of(b"wanted"), Digest::of(b"other!"));
    let mut ingest = content.ingest(&wanted, 6).unwrap();
    ingest.write(b"other!").unwrap();
    let error = ingest.commit().unwrap_err();
    assert!(error.to_string().contains(&wanted.to_string()), "{error}");
    assert!(error.to_string().contains(&came.to_string()), "{error}");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    check_nothing_is_left(&directory, &content);
}

#[test]
fn a_blob_of_another_size_is_refused() {
    let (directory, content) = store();
    let digest = Digest::of(b"wanted");
    let mut long = content.ingest(&digest, 5).unwrap();
    long.write(b"wan").unwrap();
    let error = long.write(b"ted").unwrap_err();
    assert!(matches!(error, Error::TooLong { expected: 5, .. }), "{error}");
    assert_eq!(long.written(), 3, "nothing of the surplus is stored");
    drop(long);

    let mut short = content.ingest(&digest, 7).unwrap();
    short.write(b"wanted").unwrap();
    let error = short.commit().unwrap_err();
    assert!(matches!(error, Error::TooShort { expected: 7, actual: 6, .. }), "{error}");
    check_nothing_is_left(&directory, &content);
}

#[test]
fn an_ingest_that_is_dropped_leaves_nothing() {
    let (directory, content) = store();
    let mut ingest = content.ingest(&Digest::of(b"wanted"), 6).unwrap();
    ingest.write(b"want").unwrap();
    drop(ingest);
    check_nothing_is_left(&directory, &content);
}

#[test]
fn ingests_of_one_digest_do_not_disturb_each_other() {
    let (_directory, content) = store();
    let bytes = vec![3; 1 << 20];
    let digest = Digest::of(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut ingest = content.clone().ingest(&digest, size(&bytes)).unwrap();
                bytes.chunks(4096).for_each(|piece| ingest.write(piece).unwrap());
                ingest.commit().unwrap();
                assert_eq!(content.read(&digest, 1 << 20).unwrap(), bytes);
            });
        }
    });
    assert_eq!(content.list().unwrap().count(), 1);
}

#[test]
fn what_a_dead_process_was_ingesting_is_swept() {
    let (directory, content) = store();
    let kept = content.put(b"kept").unwrap();
    let mut ingest = content.ingest(&Digest::of(b"wanted"), 6).unwrap();
    ingest.write(b"want").unwrap();
    std::mem::forget(ingest);
    drop(content);
    let content = Content::open(directory.path().join("content")).unwrap();
    content.detach(&kept).unwrap().unwrap().empty().unwrap();
    check_nothing_is_left(&directory, &content);
}

#[test]
fn the_directory_is_an_oci_image_layout() {
    let (directory, content) = store();
    let root = directory.path().join("content");
    let marker = fs::read_to_string(root.join("oci-layout")).unwrap();
    assert_eq!(marker, r#"{"imageLayoutVersion":"1.0.0"}"#);
    assert!(fs::read_to_string(root.join("index.json")).unwrap().contains(r#""manifests":[]"#));

    fs::write(root.join("index.json"), "somebody's").unwrap();
    fs::write(root.join("oci-layout"), "").unwrap();
    drop(content);
    Content::open(&root).unwrap();
    assert_eq!(fs::read_to_string(root.join("index.json")).unwrap(), "somebody's");
    assert_eq!(fs::read_to_string(root.join("oci-layout")).unwrap(), marker, "lost in a crash");
}

#[test]
fn a_damaged_blob_is_found_out_and_can_be_replaced() {
    let (directory, content) = store();
    let digest = content.put(b"bytes").unwrap();
    let path = blob_path(&directory, &digest);
    for damage in [&b"bytez"[..], b"byte", b""] {
        fs::write(&path, damage).unwrap();
        let error = content.read(&digest, 10).unwrap_err();
        assert!(matches!(error, Error::Damaged { expected, .. } if expected == digest), "{error}");
        assert_eq!(error.kind(), ErrorKind::Internal);
        content.put(b"bytes").unwrap();
        assert_eq!(content.read(&digest, 10).unwrap(), b"bytes");
    }
}

#[test]
fn what_is_no_blob_is_not_listed() {
    let (directory, content) = store();
    let digest = content.put(b"bytes").unwrap();
    let blobs = blob_path(&directory, &digest).parent().unwrap().to_owned();
    fs::write(blobs.join("README"), "x").unwrap();
    fs::write(blobs.join(digest.hex().to_uppercase()), "x").unwrap();
    fs::create_dir(blobs.join(Digest::of(b"directory").hex())).unwrap();
    let listed: Vec<_> = content.list().unwrap().map(|found| found.unwrap().digest).collect();
    assert_eq!(listed, [digest]);
}

#[test]
fn a_store_that_cannot_be_made_is_an_error_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let error = Content::open(directory.path().join("file/content")).unwrap_err();
    assert!(error.to_string().contains("file/content"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
}

/// Runs `test` on a thread with a mount namespace of its own, where `at` is a file
/// system of 256 KiB; both end with the thread.
fn with_small_filesystem(at: &Path, test: impl FnOnce() + Send) {
    use nix::mount::{MsFlags, mount};
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            mount(Some("test"), at, Some("tmpfs"), MsFlags::empty(), Some("size=256k"))
                .expect("a small file system");
            test();
        });
    });
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "skipped: needs root").unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    with_small_filesystem(directory.path(), || {
        let content = Content::open(directory.path().join("content")).unwrap();
        let bytes = vec![1; 1 << 20];
        let error = content.put(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        assert!(error.to_string().contains("content/ingest"), "{error}");
        check_nothing_is_left(&directory, &content);
        content.put(&bytes[..1000]).unwrap();
    });
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "it was mounted elsewhere");
}
