//! The record of one build: how it begins, and how it is written when the build has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use castor_oci::Digest;
use castor_progress::{Event, Timestamp};
use castor_proto::control::{
    BuildHistoryEventType, BuildHistoryRecord, BuildResultInfo, Descriptor, Exporter, StatusResponse,
};
use castor_proto::rpc;
use prost::Message as _;

use super::{History, HistoryError};
use crate::status;
use crate::{Journal, Request};

/// Every message of the build's status stream, each behind its length in four bytes, little endian.
const STATUS: &str = "application/vnd.buildkit.status.v0";
/// A statement about a result.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// An error with its details. BuildKit's spelling.
const ERROR: &str = "application/vnd.googeapis.google.rpc.status+proto";
/// Spans, as JSON.
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
/// The annotation that says what a statement states.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Bytes of a log that are gathered before they are written.
const PIECE: usize = 256 << 10;

/// What is known of the results of a build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results {
    /// What the frontend said.
    pub(crate) metadata: BTreeMap<String, Bytes>,
    /// Per result its platform's id, nothing for the only one; what kind of statement there is about it; and that.
    pub(crate) provenance: Vec<(Option<String>, &'static str, Bytes)>,
    /// What exporters made, by their place.
    pub(crate) exported: BTreeMap<i64, Descriptor>,
}

/// How a build ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its record, as it began.
    pub(crate) record: BuildHistoryRecord,
    /// Its progress, ended.
    pub(crate) journal: Arc<Journal>,
    /// What it failed with.
    pub(crate) error: Option<rpc::Status>,
    /// What it made; nothing if it came to nothing.
    pub(crate) results: Option<Results>,
}

/// The record of a build that begins.
pub(crate) fn begun(request: &Request, now: Timestamp) -> BuildHistoryRecord {
    BuildHistoryRecord {
        r#ref: request.id.clone(),
        frontend: request.frontend.clone(),
        frontend_attrs: request.options.clone(),
        exporters: request
            .exporters
            .iter()
            .map(|exporter| Exporter { r#type: exporter.kind.clone(), attrs: exporter.attrs.clone() })
            .collect(),
        created_at: Some(status::timestamp(now)),
        ..BuildHistoryRecord::default()
    }
}

/// The blobs that a record names.
pub(super) fn blobs(record: &BuildHistoryRecord) -> impl Iterator<Item = &Descriptor> {
    let results = record.result.iter().chain(record.results.values());
    let made = results.flat_map(|info| info.attestations.iter().chain(info.results.values()));
    [&record.logs, &record.trace, &record.external_error].into_iter().flatten().chain(made)
}

impl History {
    /// Writes the record of a build that ended, and tells listeners.
    pub(crate) async fn save(&self, ended: Ended) -> Result<(), HistoryError> {
        let Ended { mut record, journal, error, results } = ended;
        let id = record.r#ref.clone();
        record.completed_at = Some(status::timestamp(Timestamp::now()));
        let _writing = self.0.busy.read().await;
        self.leased(&id).await?;
        let results = results.unwrap_or_default();
        let (logs, external_error, attested) = tokio::try_join!(
            self.save_log(&id, journal.events()),
            self.save_error(&id, error.as_ref()),
            self.save_provenance(&id, results.provenance),
        )?;
        let counts = journal.counts();
        record.num_cached_steps = number(counts.cached);
        record.num_completed_steps = number(counts.completed);
        record.num_total_steps = number(counts.total);
        record.num_warnings = number(counts.warnings);
        record.logs = Some(logs);
        record.external_error = external_error;
        record.error = error.map(|error| rpc::Status { details: Vec::new(), ..error });
        record.exporter_response = results
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        for (platform, statement) in attested {
            let info = match platform {
                None => record.result.get_or_insert_default(),
                Some(id) => record.results.entry(id).or_default(),
            };
            info.attestations.push(statement);
        }
        self.add_exported(&id, &mut record, results.exported).await?;
        self.put(&record).await?;
        self.tell(BuildHistoryEventType::Complete, record);
        Ok(())
    }

    async fn add_exported(
        &self,
        id: &str,
        record: &mut BuildHistoryRecord,
        exported: BTreeMap<i64, Descriptor>,
    ) -> Result<(), HistoryError> {
        let Some(first) = exported.values().next().cloned() else { return Ok(()) };
        for descriptor in exported.values() {
            if let Ok(digest) = descriptor.digest.parse::<Digest>() {
                // An exporter that pushes need not leave its documents here.
                self.hold(id, &digest).await?;
            }
        }
        let info: &mut BuildResultInfo = record.result.get_or_insert_default();
        info.result_deprecated = Some(first);
        info.results = exported;
        Ok(())
    }

    async fn save_log(&self, id: &str, events: Vec<Event>) -> Result<Descriptor, HistoryError> {
        let mut writer = self.0.content.writer().await?;
        let mut piece = Vec::new();
        for message in status::messages(events) {
            let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
            piece.extend(length.to_le_bytes());
            piece.extend(message.encode_to_vec());
            if piece.len() >= PIECE {
                writer.append(std::mem::take(&mut piece).into()).await?;
            }
        }
        writer.append(piece.into()).await?;
        self.commit(id, STATUS, writer).await
    }

    async fn save_error(&self, id: &str, error: Option<&rpc::Status>) -> Result<Option<Descriptor>, HistoryError> {
        match error {
            Some(error) => self.blob(id, ERROR, error.encode_to_vec().into()).await.map(Some),
            None => Ok(None),
        }
    }

    async fn save_provenance(
        &self,
        id: &str,
        statements: Vec<(Option<String>, &'static str, Bytes)>,
    ) -> Result<Vec<(Option<String>, Descriptor)>, HistoryError> {
        let mut saved = Vec::with_capacity(statements.len());
        for (platform, kind, statement) in statements {
            let mut descriptor = self.blob(id, IN_TOTO, statement).await?;
            descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), kind.to_owned());
            saved.push((platform, descriptor));
        }
        Ok(saved)
    }

    /// Adds the trace to a record.
    pub(crate) async fn save_trace(&self, id: &str, spans: Bytes) -> Result<(), HistoryError> {
        let trace = {
            let _writing = self.0.busy.read().await;
            if self.record(id)?.is_none() {
                // Deleted meanwhile: nothing is left behind for it.
                return Ok(());
            }
            self.blob(id, TRACE, spans).await?
        };
        match self.update(id, |record| record.trace = Some(trace)).await {
            Err(HistoryError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// The status stream of a build that ended, message by message.
    pub async fn log(&self, record: &BuildHistoryRecord) -> Result<LogReader, HistoryError> {
        let Some(logs) = &record.logs else { return Ok(LogReader { blob: None, at: 0 }) };
        Ok(LogReader { blob: Some(self.open(logs).await?), at: 0 })
    }
}

/// Reads a status stream from its blob.
#[derive(Debug)]
pub struct LogReader {
    blob: Option<castor_content::Blob>,
    at: u64,
}

impl LogReader {
    /// The next message; nothing at the end.
    pub async fn next(&mut self) -> std::io::Result<Option<StatusResponse>> {
        let Some(blob) = self.blob.clone() else { return Ok(None) };
        let at = self.at;
        let read = castor_task::blocking(move || {
            let bad = |error: String| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            let mut length = [0; 4];
            if blob.read_at(&mut length, at)? < length.len() {
                return Ok(None);
            }
            let length = u64::from(u32::from_le_bytes(length));
            if length > blob.size().saturating_sub(at + 4) {
                return Err(bad(format!("build log {} is cut off at byte {at}", blob.digest())));
            }
            let mut bytes = vec![0; usize::try_from(length).map_err(|error| bad(error.to_string()))?];
            blob.read_at(&mut bytes, at + 4)?;
            let message = StatusResponse::decode(bytes.as_slice()).map_err(|error| bad(error.to_string()))?;
            Ok(Some((message, at + 4 + length)))
        });
        match read.await? {
            Some((message, next)) => {
                self.at = next;
                Ok(Some(message))
            }
            None => Ok(None),
        }
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
