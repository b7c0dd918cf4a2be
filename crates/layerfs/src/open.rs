//! Opening a layer lazily: one request for its end, where footer and TOC are, and an object made of the TOC.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use castor_estargz::Codec;
use castor_estargz::annotation::{self, SKIP_VERIFY, TocDigests};
use castor_estargz::footer::{self, FooterError, TocLocation};
use castor_estargz::toc::{self, Toc};
use castor_oci::{Descriptor, Digest};
use futures::StreamExt as _;

use crate::engine::Shared;
use crate::error::LayerError;
use crate::fetch::Openers;
use crate::layer::Layer;
use crate::origin::Origin;
use crate::source::{FetchError, LayerId, LayerSource, Lazy, Priority, RangeBody};
use crate::tree::from_toc;
use crate::unpack::with_sources;

/// Bounds of the first request: a share of the blob, because a TOC grows with it.
const TAIL: Range<u64> = 128 << 10..2 << 20;
const TAIL_SHARE: u64 = 64;

/// The reason of a layer that is eager because nobody wants it otherwise.
pub const NOT_ASKED: &str = "lazy layers are not asked for";
const NO_DIGEST: &str = "it has no annotation of a TOC digest";

/// Whether a layer may be lazy that nothing verifies: its TOC has no digest in the image's manifest, or chunks have none in
/// the TOC. What can be verified always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verification {
    /// Never: such a layer is fetched first.
    #[default]
    Required,
    /// If its descriptor asks for it by the annotation `containerd.io/snapshot/remote/stargz.skipverify`.
    Waivable,
    /// Always.
    Off,
}

impl Verification {
    /// Whether the layer may be lazy without being verified.
    pub(crate) fn waives(self, descriptor: &Descriptor) -> bool {
        match self {
            Self::Required => false,
            Self::Waivable => descriptor.annotations.contains_key(SKIP_VERIFY),
            Self::Off => true,
        }
    }

    /// What names a layer that is used unverified in place of its TOC's digest, which nobody vouches for: no verified
    /// layer is ever taken for it, or it for one.
    pub(crate) fn unverified(self, descriptor: &Descriptor) -> Option<Digest> {
        self.waives(descriptor).then(|| Digest::of(format!("unverified {}", descriptor.digest)))
    }
}

/// What became of the attempt to open a layer lazily.
pub(crate) enum Attempt {
    Lazy(Arc<Layer>),
    Fallback(Fallback),
}

/// Why a layer is not lazy.
pub(crate) struct Fallback {
    pub reason: String,
    /// The user should know: the layer claims to be what it is not.
    pub warn: bool,
    /// The whole blob, on its way already.
    pub body: Option<RangeBody>,
}

impl Fallback {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), warn: false, body: None }
    }

    fn warning(reason: impl Into<String>) -> Self {
        Self { warn: true, ..Self::new(reason) }
    }
}

/// The digest of the TOC that a layer is to be read by.
pub(crate) fn toc_of(descriptor: &Descriptor) -> Option<Digest> {
    annotation::toc_digests(&descriptor.annotations).ok()?.identity()
}

/// Tries it. An error is one that an eager download would meet as well.
pub(crate) async fn attempt(shared: &Arc<Shared>, source: &LayerSource) -> Result<Attempt, LayerError> {
    let fallback = |fallback: Fallback| Ok(Attempt::Fallback(fallback));
    if source.want == Lazy::Never {
        return fallback(Fallback::new(NOT_ASKED));
    }
    if let Err(reason) = &shared.modes().lazy {
        return fallback(Fallback::new(reason.clone()));
    }
    let unverified = shared.config.verification.unverified(&source.descriptor);
    let expected = match annotation::toc_digests(&source.descriptor.annotations) {
        Ok(expected) if !expected.is_empty() || unverified.is_some() => expected,
        Ok(_) => return fallback(Fallback::new(NO_DIGEST)),
        Err(error) => return fallback(Fallback::warning(error.to_string())),
    };
    match read_toc(shared, source, expected).await {
        Ok(found) => match make(shared, source, found).await {
            Ok(layer) => Ok(Attempt::Lazy(layer)),
            Err(Stop::Fallback(reason)) => fallback(reason),
            Err(Stop::Error(error)) => Err(error),
        },
        Err(Stop::Fallback(reason)) => fallback(reason),
        Err(Stop::Error(error)) => Err(error),
    }
}

enum Stop {
    Fallback(Fallback),
    Error(LayerError),
}

/// A verified TOC, and bytes of the blob that came with it.
struct Found {
    toc: Toc,
    /// What names it.
    identity: Digest,
    /// Something of it was not verified.
    unverified: bool,
    payload_end: u64,
    tail: Bytes,
    tail_start: u64,
    requests: u64,
    bytes: u64,
}

async fn read_toc(shared: &Arc<Shared>, source: &LayerSource, expected: TocDigests) -> Result<Found, Stop> {
    let size = source.descriptor.size;
    let want = (size / TAIL_SHARE).clamp(TAIL.start, TAIL.end).min(size);
    let tail_start = size - want;
    let counters = crate::fetch::Counters::default();
    let openers = Openers::default();
    openers.attach(source.opener.clone());
    if let Some(local) = shared.local_blob(source.descriptor.digest).await.map_err(Stop::Error)? {
        openers.attach(local);
    }
    let fetch = |range: Range<u64>| collect(shared, source, &openers, &counters, range);
    let tail = fetch(tail_start..size).await?;
    let footer = footer::parse(&tail[tail.len().saturating_sub(footer::MAX_SIZE)..], size);
    let (place, payload_end) = match footer {
        Ok(footer) => (footer.toc, footer.payload_end),
        Err(error) => match annotation::toc_location(&source.descriptor.annotations, size) {
            Ok(Some(location)) => (Some(location), location.payload_end),
            // An ordinary layer, which claims nothing else.
            _ if error == FooterError::None && expected.is_empty() => {
                return Err(Stop::Fallback(Fallback::new(format!("{NO_DIGEST}, and no footer"))));
            }
            _ => return Err(Stop::Fallback(Fallback::warning(error.to_string()))),
        },
    };
    castor_task::crash_point("TOC fetch");
    let compressed = match &place {
        Some(location) => toc_bytes(location, &tail, tail_start, fetch).await?,
        None => external_toc(shared, source).await?,
    };
    // Large tables are read one after the other: each takes a multiple of its compressed size.
    let told = place.and_then(|location| location.size).unwrap_or(8 * compressed.len() as u64);
    let share = u32::try_from(told >> 10).unwrap_or(u32::MAX).clamp(1, crate::engine::MEMORY_KIB / 2);
    let memory = shared.memory.clone().acquire_many_owned(share).await;
    let _memory = memory.map_err(|_| Stop::Error(LayerError::Cancelled))?;
    let unverified = shared.config.verification.unverified(&source.descriptor);
    let parsed = castor_task::blocking(move || {
        let toc = match place {
            Some(location) => {
                Toc::parse(&toc::decode(&location, &compressed, &expected)?, location.codec, payload_end)?
            }
            None => Toc::parse(&toc::decode_external(&compressed, &expected)?, Codec::Gzip, payload_end)?,
        };
        let verified = match toc.check_verifiable() {
            Ok(()) => expected.identity(),
            Err(_) if unverified.is_some() => None,
            Err(error) => return Err(error),
        };
        Ok((toc, verified))
    })
    .await;
    let (toc, verified) = parsed.map_err(|error| Stop::Fallback(Fallback::warning(with_sources(&error))))?;
    let identity = verified.or(unverified).ok_or_else(|| Stop::Fallback(Fallback::new(NO_DIGEST)))?;
    Ok(Found {
        toc,
        identity,
        unverified: verified.is_none(),
        payload_end,
        tail,
        tail_start,
        requests: counters.requests.into_inner(),
        bytes: counters.fetched.into_inner(),
    })
}

/// The TOC of a layer that has it apart.
async fn external_toc(shared: &Shared, source: &LayerSource) -> Result<Bytes, Stop> {
    let deadline = shared.config.read_deadline;
    let toc = tokio::time::timeout(deadline, source.opener.external_toc()).await;
    let toc = toc.unwrap_or_else(|_| Err(FetchError::new(format!("no answer within {deadline:?}"))));
    toc.map_err(|error| Stop::Fallback(Fallback::warning(format!("its TOC is in another blob: {error}"))))
}

/// The compressed TOC, of which the tail may lack the beginning.
async fn toc_bytes<F, W>(location: &TocLocation, tail: &Bytes, tail_start: u64, fetch: F) -> Result<Bytes, Stop>
where
    F: Fn(Range<u64>) -> W,
    W: Future<Output = Result<Bytes, Stop>>,
{
    let end = location.offset + location.compressed_size;
    if location.offset >= tail_start {
        let start = (location.offset - tail_start) as usize;
        return Ok(tail.slice(start..(end - tail_start) as usize));
    }
    let mut bytes = BytesMut::from(&*fetch(location.offset..tail_start.min(end)).await?);
    if end > tail_start {
        bytes.extend_from_slice(&tail[..(end - tail_start) as usize]);
    }
    Ok(bytes.freeze())
}

/// Reads a range; an answer with the whole blob becomes the eager download.
async fn collect(
    shared: &Arc<Shared>,
    source: &LayerSource,
    openers: &Openers,
    counters: &crate::fetch::Counters,
    range: Range<u64>,
) -> Result<Bytes, Stop> {
    let failed = |source_error: FetchError| {
        Stop::Error(LayerError::Fetch {
            layer: source.descriptor.digest,
            image: source.image.clone(),
            source: source_error,
        })
    };
    let once = async {
        let (mut body, from) = openers.range(range.clone(), Priority::Demand, counters).await.map_err(failed)?;
        if body.full && body.range != range {
            let reason = format!("{from} does not serve ranges");
            return Err(Stop::Fallback(Fallback { body: Some(body), ..Fallback::new(reason) }));
        }
        let mut bytes = BytesMut::new();
        let length = range.end - range.start;
        while (bytes.len() as u64) < length {
            match body.stream.next().await {
                Some(piece) => bytes.extend_from_slice(&piece.map_err(failed)?),
                None => return Err(failed(FetchError::new("the answer ended early"))),
            }
        }
        bytes.truncate(length as usize);
        counters.fetched.fetch_add(length, std::sync::atomic::Ordering::Relaxed);
        Ok(bytes.freeze())
    };
    match tokio::time::timeout(shared.config.read_deadline, once).await {
        Ok(outcome) => outcome,
        Err(_) => Err(failed(FetchError::new(format!("no answer within {:?}", shared.config.read_deadline)))),
    }
}

/// Makes the object and opens it. The rename is the commit point.
async fn make(shared: &Arc<Shared>, source: &LayerSource, found: Found) -> Result<Arc<Layer>, Stop> {
    let id = LayerId { blob: source.descriptor.digest, toc: Some(found.identity) };
    let claimed = source.diff_id;
    let mut origin = Origin::new(source.descriptor.clone(), source.origins.clone(), source.image.clone(), claimed);
    origin.unverified = found.unverified;
    if found.unverified {
        tracing::warn!(layer = %source.descriptor.digest, image = source.image, "layer is used without being verified");
    }
    let (this, toc, payload_end) = (shared.clone(), found.toc, found.payload_end);
    let size = source.descriptor.size;
    let written = castor_task::blocking(move || {
        let plan =
            from_toc(&toc, size, payload_end).map_err(|error| Stop::Fallback(Fallback::warning(error.to_string())))?;
        let dir = this.new_dir().map_err(Stop::Error)?;
        let outcome = crate::download::write_object(&dir, &plan, &origin, None)
            .and_then(|()| crate::download::commit_object(&dir, &this.layer_dir(id)));
        outcome.map_err(|error| {
            let _ = std::fs::remove_dir_all(&dir);
            Stop::Error(error)
        })
    })
    .await;
    written?;
    let layer = match shared.load(id).await {
        Ok(Some(layer)) => layer,
        Ok(None) => {
            let reason = "it cannot be read back".to_owned();
            return Err(Stop::Error(LayerError::Object { layer: id, reason }));
        }
        Err(error) => return Err(Stop::Error(error)),
    };
    let core = layer.core.clone();
    core.openers.attach(source.opener.clone());
    core.counters.requests.fetch_add(found.requests, std::sync::atomic::Ordering::Relaxed);
    core.counters.fetched.fetch_add(found.bytes, std::sync::atomic::Ordering::Relaxed);
    core.scope.clone().spawn_named("keep the end of the layer", async move {
        if let Some(fetcher) = core.object.get().and_then(|object| object.fetcher.as_ref()) {
            fetcher.offer(found.tail_start, &found.tail).await;
        }
    });
    Ok(layer)
}
