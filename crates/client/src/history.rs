//! Builds of the past, and what the daemon keeps of them.

use bytes::Bytes;
use castor_oci::Digest;
use castor_proto::content::content_client::ContentClient;
use castor_proto::content::{InfoRequest, ReadContentRequest};
use castor_proto::control;
use castor_wire::limited;
use futures::{Stream, TryStreamExt as _};

use crate::connection::{Client, ClientError};
use crate::status::SolveStatus;

impl Client {
    /// The records of past and running builds, and what becomes of them.
    pub async fn histories(
        &self,
        request: control::BuildHistoryRequest,
    ) -> Result<impl Stream<Item = Result<control::BuildHistoryEvent, ClientError>> + use<>, ClientError> {
        let response = self.control().listen_build_history(request).await.map_err(ClientError::stream)?;
        Ok(response.into_inner().map_err(ClientError::stream))
    }

    /// Keeps a record, or lets it go; `delete` removes it.
    pub async fn update_history(&self, reference: &str, pinned: bool, delete: bool) -> Result<(), ClientError> {
        let request = control::UpdateBuildHistoryRequest {
            r#ref: reference.to_owned(),
            pinned,
            delete,
            ..control::UpdateBuildHistoryRequest::default()
        };
        self.control().update_build_history(request).await.map(drop).map_err(ClientError::call(""))
    }

    /// The news of a build, from its begin; those of one that runs go on until its end.
    pub async fn logs(
        &self,
        reference: &str,
    ) -> Result<impl Stream<Item = Result<SolveStatus, ClientError>> + use<>, ClientError> {
        let request = control::StatusRequest { r#ref: reference.to_owned() };
        let response = self.control().status(request).await.map_err(ClientError::stream)?;
        Ok(response.into_inner().map_ok(SolveStatus::from).map_err(ClientError::stream))
    }

    /// The bytes of one of the daemon's blobs. They are not verified.
    pub async fn blob(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + use<>, ClientError> {
        let mut content = limited!(ContentClient::new(self.channel()));
        let digest = digest.to_string();
        // A blob of no bytes has no answer to tell whether it is there.
        let info = content.info(InfoRequest { digest: digest.clone() }).await.map_err(ClientError::call(""))?;
        let size = info.into_inner().info.map_or(0, |info| info.size);
        let request = ReadContentRequest { digest, offset: 0, size };
        let response = content.read(request).await.map_err(ClientError::call(""))?;
        Ok(response.into_inner().map_ok(|answer| answer.data).map_err(|status| ClientError::call("")(status)))
    }
}
