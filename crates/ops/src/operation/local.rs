//! A directory of the client as a source. What was sent before is kept, and only changes are sent again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use castor_fsutil::{Differ, FilterOptions, Patterns, Progress, ReceiveOptions, StatFilter};
use castor_llb::LocalSource;
use castor_progress::Task;
use castor_session::{Caller, SessionError, filesync};
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs};
use castor_store::{ImmutableRef, RecordOptions, RecordType};
use parking_lot::Mutex;

use crate::openers::group;
use crate::worker::Worker;
use crate::{OpError, identity};

/// How long the client's session is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two reports of how much was transferred.
const REPORT: Duration = Duration::from_millis(100);

pub(crate) struct Local {
    worker: Worker,
    source: LocalSource,
    /// Name under which the client serves the directory.
    name: String,
    /// The session that the source names, if it does.
    session: Option<String>,
}

impl Local {
    pub(crate) fn new(worker: Worker, source: LocalSource) -> Self {
        // A prefix tells apart sources of one session.
        let (name, session) = match source.session.split_once(':') {
            Some((prefix, session)) => (format!("{prefix}-{}", source.name), session.to_owned()),
            None => (source.name.clone(), source.session.clone()),
        };
        Self { worker, source, name, session: Some(session).filter(|session| !session.is_empty()) }
    }

    async fn transfer(&self, cx: &Cx) -> Result<ImmutableRef, OpError> {
        if let Some(session) = &self.session
            && let Ok(caller) = self.worker.sessions().get(session, PATIENCE).await
        {
            match self.receive(cx, &caller).await {
                Err(OpError::Session(SessionError::Closed { .. })) => {}
                result => return result,
            }
        }
        // The session is gone; another build may want the same and have one.
        let mut last = None;
        for id in group(self.worker.sessions(), cx).ids() {
            match self.worker.sessions().get(&id, PATIENCE).await {
                Ok(caller) => match self.receive(cx, &caller).await {
                    Ok(result) => return Ok(result),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = last.or(Some(error.into())),
            }
        }
        Err(last.unwrap_or(OpError::Session(SessionError::NoneActive)))
    }

    async fn receive(&self, cx: &Cx, caller: &Caller) -> Result<ImmutableRef, OpError> {
        let source = &self.source;
        let suffix = if source.metadata_only.is_some() { ":metadata" } else { "" };
        let key = format!("{}:{}:{}{suffix}", self.name, source.shared_key_hint, caller.shared_key());
        let store = self.worker.store();
        let target = match store.retained(&key).await {
            Some(target) => target,
            None => {
                let options = RecordOptions {
                    record_type: RecordType::LocalSource,
                    ..RecordOptions::described(format!("local source for {}", self.name))
                };
                store.new_mutable(cx, None, options).await?
            }
        };
        let mounting = target.mount(cx).await?;
        let observer = target.observer().await?;
        let choice = FilterOptions {
            include: source.include_patterns.clone(),
            exclude: source.exclude_patterns.clone(),
            follow: source.follow_paths.clone(),
        };
        let transferring = Transferring::start(cx, &self.name);
        let options = ReceiveOptions {
            differ: match source.differ {
                castor_llb::Differ::Metadata => Differ::Metadata,
                castor_llb::Differ::None => Differ::None,
            },
            metadata_only: source.metadata_only.as_deref().map(metadata_filter).transpose()?,
            progress: Some(transferring.progress()),
            observer: Some(observer),
            hold: Some(mounting.clone()),
            ..ReceiveOptions::default()
        };
        let transfer = filesync::receive(caller, &self.name, &choice, mounting.path(), options);
        let received = tokio::select! {
            () = cx.token().cancelled() => Err(OpError::Cancelled),
            received = transfer => received.map_err(OpError::from),
        };
        transferring.finish();
        drop(mounting);
        // What a transfer left half done is not kept: neither files nor hashes can be trusted.
        received?;
        target.retain_as(&key).await?;
        Ok(target.freeze().await?)
    }
}

/// Which entries come with their content although the others do not.
fn metadata_filter(exceptions: &[String]) -> Result<StatFilter, OpError> {
    let patterns = Patterns::new(exceptions)
        .map_err(|error| OpError::Invalid(format!("invalid local.metadatatransferexclude: {error}")))?;
    Ok(Arc::new(move |path: &[u8], _: &castor_fsutil::Stat| patterns.matches(path).unwrap_or(false)))
}

/// The status line of a transfer, at most ten times a second.
#[derive(Clone)]
struct Transferring(Arc<Mutex<Line>>);

struct Line {
    task: Option<Task>,
    reported: Instant,
    bytes: u64,
}

impl Transferring {
    fn start(cx: &Cx, name: &str) -> Self {
        let task = cx.reporter().start(format!("transferring {name}:"), "transferring", 0);
        Self(Arc::new(Mutex::new(Line { task: Some(task), reported: Instant::now(), bytes: 0 })))
    }

    fn progress(&self) -> Progress {
        let line = self.0.clone();
        Arc::new(move |bytes| {
            let mut line = line.lock();
            line.bytes = bytes;
            if line.reported.elapsed() >= REPORT {
                line.reported = Instant::now();
                if let Some(task) = &mut line.task {
                    task.update(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
        })
    }

    fn finish(self) {
        let mut line = self.0.lock();
        let bytes = i64::try_from(line.bytes).unwrap_or(i64::MAX);
        if let Some(mut task) = line.task.take() {
            task.update(bytes);
            task.finish();
        }
    }
}

#[async_trait]
impl Operation<ImmutableRef> for Local {
    async fn cache_map(&self, cx: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        let session = match &self.session {
            Some(session) => session.clone(),
            None => cx
                .sessions()
                .into_iter()
                .next()
                .ok_or_else(|| OpError::Invalid("could not access local files without session".to_owned()))?,
        };
        let key = identity::local(&self.name, &session, &self.source);
        let map = CacheMap { volatile: true, ..CacheMap::new(identity::source(&key)) };
        Ok((map, true))
    }

    async fn execute(&self, cx: &Cx, _: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        Ok(vec![Some(self.transfer(cx).await?)])
    }
}
