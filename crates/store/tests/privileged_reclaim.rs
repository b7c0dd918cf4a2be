//! What goes under pressure, in which order, and what does not.
#![allow(clippy::unwrap_used)]

mod lab;

use std::time::Duration;

use castor_content::ContentStore as _;
use castor_layerfs::Lazy;
use castor_store::{GcPolicy, ImmutableRef, PruneOptions, Pruned};
use castor_testkit::{File, Form, Image, ImageBuilder, Registry};
use lab::{Lab, texts};
use parking_lot::Mutex;

/// Text that compresses to a half at best.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed | 1;
    let digit = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from_digit((state >> 60) as u32, 16).unwrap()
    };
    (0..length).map(digit).collect()
}

const SIZE: usize = 600_000;

fn two_layers(form: Form) -> Image {
    ImageBuilder::new()
        .layer(&[File::new("a", noise(1, SIZE))], form)
        .layer(&[File::new("b", noise(2, SIZE))], form)
        .build()
}

/// A step on the image that is kept.
async fn kept_step(lab: &Lab, image: &ImmutableRef) -> ImmutableRef {
    let step = lab.step(Some(image), "step", &[("s", "s")]).await;
    step.retain().await.unwrap();
    lab.files(&step).await;
    step
}

async fn used(lab: &Lab) -> u64 {
    lab.usage().await.iter().map(|info| info.size.unsigned_abs()).sum()
}

/// Prunes down to so many bytes; what was told.
async fn down_to(lab: &Lab, bytes: u64) -> (Pruned, Vec<String>) {
    let told = Mutex::new(Vec::new());
    let report = |info: castor_store::RecordInfo| told.lock().push(info.description);
    let options = PruneOptions { max_used_space: bytes, ..PruneOptions::default() };
    let pruned = lab.store.prune(&options, &report).await.unwrap();
    (pruned, told.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_bytes_that_can_be_had_again_go_before_any_record() {
    for form in [Form::Estargz, Form::Gzip] {
        let registry = Registry::start().await;
        let lab = Lab::new().await;
        let made = two_layers(form);
        let image = lab.image(&registry, &made, "base:1", Lazy::Prefer).await;
        image.complete(&lab.cx()).await.unwrap();
        let step = kept_step(&lab, &image).await;

        drop(image);

        // As long as somebody has it, all of it stays.
        let before = used(&lab).await;
        assert_eq!(down_to(&lab, 1).await, (Pruned::default(), vec![]));
        assert_eq!(used(&lab).await, before);
        let id = step.id().to_owned();
        drop(step);

        // A little too much: compressed bytes of one layer.
        let (pruned, told) = down_to(&lab, used(&lab).await - 1).await;
        assert_eq!((pruned.records, pruned.layers), (0, 1), "{told:?}");
        assert!(told[0].starts_with("compressed bytes of "), "{told:?}");
        assert!(pruned.bytes >= made.layers[0].descriptor.size.min(made.layers[1].descriptor.size));
        // Then those of the other, then data; the records are there, and du tells the truth.
        let (pruned, told) = down_to(&lab, SIZE as u64 + 200_000).await;
        let kinds: Vec<&str> = told.iter().map(|text| text.split(" of ").next().unwrap()).collect();
        assert_eq!(kinds, ["compressed bytes", "data"], "{told:?}");
        assert_eq!(pruned.records, 0);
        let left = used(&lab).await;
        assert!(left <= SIZE as u64 + 200_000 && left < before, "{left} of {before}");
        for layer in &made.layers {
            assert!(lab.content.info(&layer.descriptor.digest).await.unwrap().is_none());
        }
        let (pruned, _) = down_to(&lab, 100_000).await;
        assert_eq!((pruned.records, pruned.layers), (0, 1));
        assert_eq!(lab.usage().await.len(), 3);

        // Also after a restart, what was dropped is fetched by whoever wants it, and right.
        let lab = lab.restart().await;
        let step = lab.store.get(&id).await.unwrap();
        let want = texts(&[("a", &noise(1, SIZE)), ("b", &noise(2, SIZE)), ("s", "s")]);
        assert_eq!(lab.files(&step).await, want, "{form:?}");
        drop(step);

        // Only when that is not enough do records go.
        let (pruned, _) = down_to(&lab, 1).await;
        assert_eq!((pruned.records, lab.usage().await), (3, vec![]));
        lab.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_rule_is_not_about_keeps_its_bytes() {
    let registry = Registry::start().await;
    let lab = Lab::new().await;
    let image = lab.image(&registry, &two_layers(Form::Estargz), "base:1", Lazy::Prefer).await;
    image.complete(&lab.cx()).await.unwrap();
    let step = kept_step(&lab, &image).await;
    drop((image, step));
    let before = used(&lab).await;
    let rules = [
        GcPolicy { filters: vec!["type==source.local".parse().unwrap()], max_used_space: 1, ..GcPolicy::default() },
        GcPolicy { keep_duration: Some(Duration::from_secs(3600)), max_used_space: 1, ..GcPolicy::default() },
        GcPolicy { max_used_space: before + 1, ..GcPolicy::default() },
    ];
    assert_eq!(lab.store.gc(&rules).await.unwrap(), Pruned::default());
    assert_eq!(used(&lab).await, before);
    // A layer that somebody else holds keeps its blob.
    let layers = lab.store.layers().await.unwrap();
    let blob = layers[0].layer.id.blob;
    let leases = lab.store.leases();
    leases.create_lease("other", Default::default(), None).await.unwrap();
    leases.add_resource("other", &castor_content::Resource::Blob(blob)).await.unwrap();
    let rule = GcPolicy { max_used_space: 500_000, ..GcPolicy::default() };
    let pruned = lab.store.gc(&[rule]).await.unwrap();
    assert_eq!((pruned.records, pruned.layers), (0, 2), "{pruned:?}");
    assert!(lab.content.info(&blob).await.unwrap().is_some());
    assert_eq!(lab.usage().await.len(), 3);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_are_shown_with_those_who_have_them() {
    let registry = Registry::start().await;
    let lab = Lab::new().await;
    let image = lab.image(&registry, &two_layers(Form::Estargz), "base:1", Lazy::Prefer).await;
    let mounted = image.mount(&lab.cx()).await.unwrap();
    let layers = lab.store.layers().await.unwrap();
    assert_eq!(layers.len(), 2);
    for usage in &layers {
        assert!(usage.in_use && usage.layer.open && usage.records.len() == 1, "{usage:?}");
        assert!(usage.summary().starts_with("lazy; "), "{}", usage.summary());
        assert!(usage.layer.image.ends_with("base:1"));
    }
    let shown = |usage: &castor_store::LayerUsage| (usage.layer.id, usage.records.clone(), usage.in_use);
    let open = lab.store.open_layers();
    assert_eq!(open.iter().map(shown).collect::<Vec<_>>(), layers.iter().map(shown).collect::<Vec<_>>());
    assert!(open.iter().all(|usage| usage.layer.open && usage.layer.disk == 0), "{open:?}");
    drop(mounted);
    let step = kept_step(&lab, &image).await;
    drop((image, step));
    // The unmounting ends after the last user has gone.
    let idle = async {
        while lab.store.layers().await.unwrap().iter().any(|usage| usage.in_use) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), idle).await.unwrap();
    let layers = lab.store.layers().await.unwrap();
    assert!(layers.iter().all(|usage| usage.last_used.is_some()), "{layers:?}");
    lab.close().await;
}
