//! Models that go to a store and come from one, and inputs that must be the ones that are known.

use crate::objects::{Below, Memory, agents, files, one_thread, planned};
use crate::support::*;
use pmill_snapshot::{
    Algorithm, Digest, ErrorKind, InspectSettings, MergeSettings, ObjectFolder, SnapshotError,
    SnapshotPath, fetch, inspect_with, merge, upload_merged,
};
use std::path::Path;
use std::sync::Arc;
use tempfile::tempdir;

#[test]
fn a_model_from_disk_goes_to_a_store_whole_or_not_at_all() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let local = root.path().join("merged");
    run(&places, &local, &settings()).unwrap();
    let expected = files(&local);
    let whole = Memory::default();
    upload_merged(&planned(&places, &whole, &one_thread()), &local, &|_| true).unwrap();
    assert!(whole.content() == expected && whole.uploads() == 0);
    let model = whole.load("merged");
    let mut after = 0;
    loop {
        let store = Memory::default();
        store.stop_after(Some(after));
        let plan = planned(&places, &store, &one_thread());
        let ended = upload_merged(&plan, &local, &|_| true);
        let found = store.load("merged");
        assert!(found.is_none() || found == model, "a half model at {after}");
        let over = ended.is_ok();
        if let Err(error) = ended {
            assert_eq!(error.kind(), ErrorKind::NotNow, "{error}");
        }
        if !over && after % 2 == 0 {
            upload_merged(&plan, &local, &|_| true).unwrap();
        } else {
            // A merge that computes its parts finds the copy's uploads, some of them completed, and then begins anew.
            if let Err(error) = merge(&plan, &|_| true) {
                assert_eq!(error.kind(), ErrorKind::NotNow, "{error}");
                merge(&plan, &|_| true).unwrap();
            }
        }
        assert!(store.content() == expected, "another output at {after}");
        if over {
            break;
        }
        after += 1;
    }
    assert!(after > 10, "only {after} calls");
    // Neither onto another model nor from another.
    let other = planned(&places[..2], &whole, &one_thread());
    let error = upload_merged(&other, &local, &|_| true).unwrap_err();
    assert!(
        error.to_string().contains("is not the model of this merge"),
        "{error}"
    );
    let two = root.path().join("two");
    run(&places[..2], &two, &settings()).unwrap();
    let error = upload_merged(&other, &two, &|_| true).unwrap_err();
    assert!(matches!(error, SnapshotError::Exists { .. }), "{error}");
    let overwrite = MergeSettings {
        overwrite: true,
        ..one_thread()
    };
    let other = planned(&places[..2], &whole, &overwrite);
    let stopped = upload_merged(&other, &two, &|_| false).unwrap_err();
    assert!(matches!(stopped, SnapshotError::Stopped), "{stopped}");
    assert!(whole.content() == expected && whole.uploads() == 0);
    upload_merged(&other, &two, &|_| true).unwrap();
    assert!(whole.content() == files(&two));
}

#[test]
fn a_snapshot_is_fetched_as_it_is_without_what_is_no_part_of_it() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    let store = Memory::default();
    merge(&planned(&places, &store, &settings()), &|_| true).unwrap();
    store.put("merged/optimizer.pt", vec![1]).unwrap();
    let source = Arc::new(Below(store.clone(), "merged".into()));
    let fetched = root.path().join("deep/fetched");
    let path = fetch(
        &SnapshotPath::new(source.clone(), None),
        &fetched,
        Some(3),
        &|_| true,
    );
    assert_eq!(path.unwrap(), fetched);
    let mut expected = store.content();
    expected.retain(|name, _| !name.contains("optimizer") && !name.contains("pmill-merge"));
    assert!(files(&fetched) == expected);
    // One file, named.
    let name = "model-00001-of-00002.safetensors";
    let one = SnapshotPath::new(source.clone(), Some(name.into()));
    let path = fetch(&one, &root.path().join("one"), None, &|_| true).unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        expected[&format!("merged/{name}")]
    );
    assert_eq!(path, root.path().join("one").join(name));
    let all = SnapshotPath::new(source, None);
    let stopped = fetch(&all, &root.path().join("stopped"), Some(1), &|_| false).unwrap_err();
    assert!(matches!(stopped, SnapshotError::Stopped), "{stopped}");
    store.stop_after(Some(8));
    let away = fetch(&all, &root.path().join("away"), Some(1), &|_| true).unwrap_err();
    assert_eq!(away.kind(), ErrorKind::NotNow);
}

fn digests(places: &[impl AsRef<Path>], algorithm: Algorithm) -> Vec<Digest> {
    let settings = InspectSettings {
        read_data: true,
        algorithm,
        ..InspectSettings::default()
    };
    let digest = |place: &Path| {
        let path = SnapshotPath::local(place).unwrap();
        inspect_with(&path, settings).unwrap().digest.unwrap()
    };
    places.iter().map(|place| digest(place.as_ref())).collect()
}

#[test]
fn inputs_with_another_digest_than_the_known_one_never_become_a_model() {
    let root = tempdir().unwrap();
    let places = agents(root.path(), 0);
    // With a rule that leaves a tensor unread there is no digest of the whole in the manifest.
    let skipping = MergeSettings {
        rules: vec!["e=skip".parse().unwrap()],
        ..settings()
    };
    for (algorithm, settings) in [
        (Algorithm::Xxh3, settings()),
        (Algorithm::Blake3, settings()),
        (Algorithm::Xxh3, skipping),
    ] {
        let known = digests(&places, algorithm);
        let mut wrong = known.clone();
        wrong.swap(1, 2);
        let out = root.path().join("out");
        let refused = merge(
            &plan(&places, &out, &settings)
                .unwrap()
                .expecting(wrong.clone()),
            &|_| true,
        );
        let message = refused.unwrap_err().to_string();
        let words = format!(
            "`{}` has the digest {}, and {} was expected",
            places[1].display(),
            known[1],
            known[2]
        );
        assert!(message.contains(&words), "{message}");
        assert!(!out.exists() && !root.path().join(".out.pmill-staging").exists());
        merge(
            &plan(&places, &out, &settings)
                .unwrap()
                .expecting(known.clone()),
            &|_| true,
        )
        .unwrap();
        std::fs::remove_dir_all(out).unwrap();

        let store = Memory::default();
        let refused = merge(
            &planned(&places, &store, &settings).expecting(wrong),
            &|_| true,
        );
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::User);
        assert!(store.content().is_empty() && store.uploads() == 0);
        merge(
            &planned(&places, &store, &settings).expecting(known),
            &|_| true,
        )
        .unwrap();
    }
}
