//! The daemon as its client sees it.

use std::fmt;
use std::time::Duration;

use castor_proto::control::control_client::ControlClient;
use castor_proto::gateway::llb_bridge_client::LlbBridgeClient;
use castor_proto::{control, types};
use castor_wire::{Address, AddressError, ClientTls, DialError, Failure, limited};
use futures::Stream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::elsewhere::Way;

/// How long is waited between two attempts to reach a daemon that is starting.
const WAIT_PAUSE: Duration = Duration::from_secs(1);

/// What can go wrong with a daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It cannot be reached.
    #[error("{}Unavailable: {}", Context(context), Dialing(error))]
    Dial {
        /// What was asked of it.
        context: &'static str,
        /// Why it cannot be reached; the message says it whole.
        error: DialError,
    },
    /// It refused.
    #[error("{}{}", Context(context), Coded(.failure))]
    Call {
        /// What was asked of it.
        context: &'static str,
        /// What it said.
        failure: Failure,
    },
    /// It ended a stream of answers.
    #[error("rpc error: code = {} desc = {}", code_name(.failure.code), .failure.message)]
    Stream {
        /// What it said.
        failure: Failure,
    },
    /// It did not get ready in time.
    #[error("context deadline exceeded")]
    Timeout,
    /// The build was cancelled here.
    #[error("context canceled")]
    Canceled,
    /// What it was asked to build makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Something on this side failed.
    #[error("{what}: {source}")]
    Local {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The session could not be served.
    #[error("session: {0}")]
    Session(String),
}

impl ClientError {
    /// The error as the daemon sent it, with its details.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Call { failure, .. } | Self::Stream { failure } => Some(failure),
            _ => None,
        }
    }

    pub(crate) fn stream(status: Status) -> Self {
        Self::Stream { failure: failure_of(&status) }
    }

    pub(crate) fn call(context: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Call { context, failure: failure_of(&status) }
    }
}

/// What was asked, in front of what came of it.
struct Context(&'static str);

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// What a call came to. A status that has a cause was made on this side: the connection broke.
fn failure_of(status: &Status) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut deepest = None;
    while let Some(err) = cause {
        deepest = Some(match err.downcast_ref::<std::io::Error>() {
            Some(err) => system_words(err),
            None => err.to_string(),
        });
        cause = err.source();
    }
    match deepest {
        Some(words) => Failure::new(Code::Unavailable, format!("connection error: desc = \"{words}\"")),
        None => Failure::from_status(status),
    }
}

/// A failed connection in the words of Go's gRPC, which people search for.
struct Dialing<'a>(&'a DialError);

impl fmt::Display for Dialing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DialError::Connect { address, source } = self.0 else { return self.0.fmt(f) };
        let (network, place) = match address {
            Address::Unix(path) => ("unix", path.display().to_string()),
            Address::Tcp(place) => ("tcp", place.clone()),
            Address::Inherited => ("fd", String::new()),
        };
        write!(f, "connection error: desc = \"transport: Error while dialing: dial {network} {place}: ")?;
        match source.kind() {
            std::io::ErrorKind::TimedOut => f.write_str("i/o timeout\""),
            _ => write!(f, "connect: {}\"", system_words(source)),
        }
    }
}

/// An error of the operating system in the words that most tools use for it: `no such file or directory`.
pub fn system_words(err: &std::io::Error) -> String {
    let rust = err.to_string();
    let Some(words) = err.raw_os_error().and_then(|code| rust.strip_suffix(&format!(" (os error {code})"))) else {
        return rust;
    };
    let mut letters = words.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_lowercase).collect();
    first + letters.as_str()
}

/// An error of the wire with the name of its code, unless that says nothing.
struct Coded<'a>(&'a Failure);

impl fmt::Display for Coded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.code {
            Code::Unknown | Code::Ok => f.write_str(&self.0.message),
            code => write!(f, "{}: {}", code_name(code), self.0.message),
        }
    }
}

/// The name of a code as Go's gRPC prints it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Where the daemon is and how it is reached.
#[derive(Debug, Clone)]
pub struct Target {
    /// `unix:///run/buildkit/buildkitd.sock`, `tcp://host:port`; through a program `docker-container://name`,
    /// `podman-container://name`, `nerdctl-container://name`, `kube-pod://name`, `ssh://user@host`.
    pub address: String,
    /// Certificates, for TCP.
    pub tls: Option<ClientTls>,
    /// How long to wait for a connection; zero for ever.
    pub timeout: Duration,
    /// Wait until a daemon answers.
    pub wait: bool,
}

/// A connection to a daemon.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

/// What is removed, and what is kept.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Only records that match one of these.
    pub filter: Vec<String>,
    /// Records of the daemon's own too.
    pub all: bool,
    /// Records used more recently than this are kept.
    pub keep_duration: Duration,
    /// Bytes that may always be kept.
    pub reserved_space: i64,
    /// Bytes that are kept at most.
    pub max_used_space: i64,
    /// Bytes that are to be free on the disk.
    pub min_free_space: i64,
}

impl Client {
    /// Connects. `context` is what an error begins with: what is wanted of the daemon.
    pub async fn connect(target: &Target, context: &'static str) -> Result<Self, ClientError> {
        let way = Way::to(&target.address).transpose()?;
        let address: Option<Address> = way.is_none().then(|| target.address.parse()).transpose()?;
        let timeout = if target.timeout.is_zero() { Duration::from_secs(u64::from(u32::MAX)) } else { target.timeout };
        let attempt = || async {
            let channel = match (&way, &address) {
                (Some(way), _) => way.connect(context).await?,
                (None, Some(address)) => castor_wire::dial(address, target.tls.as_ref(), timeout)
                    .await
                    .map_err(|error| ClientError::Dial { context, error })?,
                // An address is one or the other.
                (None, None) => return Err(ClientError::Invalid(format!("invalid address {}", target.address))),
            };
            Ok(Self { channel })
        };
        if !target.wait {
            return attempt().await;
        }
        let ready = async {
            loop {
                if let Ok(client) = attempt().await
                    && client.answers().await
                {
                    return client;
                }
                tokio::time::sleep(WAIT_PAUSE).await;
            }
        };
        tokio::time::timeout(timeout, ready).await.map_err(|_| ClientError::Timeout)
    }

    /// Whether it does; a daemon that is too old to know the question is ready too.
    async fn answers(&self) -> bool {
        match self.control().info(control::InfoRequest {}).await {
            Ok(_) => true,
            Err(status) => status.code() == Code::Unimplemented,
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        limited!(ControlClient::new(self.channel.clone()))
    }

    pub(crate) fn gateway(&self) -> LlbBridgeClient<Channel> {
        limited!(LlbBridgeClient::new(self.channel.clone()))
    }

    /// What the daemon is.
    pub async fn info(&self) -> Result<types::BuildkitVersion, ClientError> {
        let response =
            self.control().info(control::InfoRequest {}).await.map_err(ClientError::call("failed to call info"))?;
        Ok(response.into_inner().buildkit_version.unwrap_or_default())
    }

    /// Its workers.
    pub async fn workers(&self, filter: Vec<String>) -> Result<Vec<types::WorkerRecord>, ClientError> {
        let request = control::ListWorkersRequest { filter };
        let response =
            self.control().list_workers(request).await.map_err(ClientError::call("failed to list workers"))?;
        Ok(response.into_inner().record)
    }

    /// Its records, the smallest first.
    pub async fn disk_usage(&self, filter: Vec<String>) -> Result<Vec<control::UsageRecord>, ClientError> {
        let request = control::DiskUsageRequest { filter, ..control::DiskUsageRequest::default() };
        let response =
            self.control().disk_usage(request).await.map_err(ClientError::call("failed to call diskusage"))?;
        let mut records = response.into_inner().record;
        records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
        Ok(records)
    }

    /// Removes records, and tells each as it goes.
    pub async fn prune(
        &self,
        options: PruneOptions,
    ) -> Result<impl Stream<Item = Result<control::UsageRecord, ClientError>> + use<>, ClientError> {
        use futures::TryStreamExt as _;
        let request = control::PruneRequest {
            filter: options.filter,
            all: options.all,
            keep_duration: i64::try_from(options.keep_duration.as_nanos()).unwrap_or(i64::MAX),
            reserved_space: options.reserved_space,
            max_used_space: options.max_used_space,
            min_free_space: options.min_free_space,
        };
        let response = self.control().prune(request).await.map_err(ClientError::stream)?;
        Ok(response.into_inner().map_err(ClientError::stream))
    }
}
