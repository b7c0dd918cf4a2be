//! Secrets for build steps.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use castor_proto::secrets::secrets_server::{Secrets as SecretsService, SecretsServer};
use castor_proto::secrets::{GetSecretRequest, GetSecretResponse};
use tokio::io::AsyncReadExt as _;
use tonic::{Request, Response, Status};

/// The largest secret.
const LARGEST: usize = 500 << 10;

/// Where a secret is.
#[derive(Clone)]
pub enum Secret {
    /// In a file, read when it is asked for.
    File(PathBuf),
    /// Here.
    Value(Bytes),
}

/// Secrets by id.
#[derive(Clone, Default)]
pub struct Secrets {
    secrets: BTreeMap<String, Secret>,
}

impl Secrets {
    /// Offers a secret as `id`.
    pub fn insert(&mut self, id: impl Into<String>, secret: Secret) {
        self.secrets.insert(id.into(), secret);
    }

    pub(super) fn service(self) -> SecretsServer<Self> {
        SecretsServer::new(self)
    }
}

#[tonic::async_trait]
impl SecretsService for Secrets {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = match self.secrets.get(&id) {
            None => return Err(Status::not_found(format!("secret {id}: not found"))),
            Some(Secret::Value(value)) => value.clone(),
            Some(Secret::File(path)) => {
                let failed = |error| Status::unknown(format!("read secret {id} from {}: {error}", path.display()));
                let mut bytes = Vec::new();
                let file = tokio::fs::File::open(path).await.map_err(failed)?;
                file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
                bytes.into()
            }
        };
        if data.len() > LARGEST {
            return Err(Status::unknown(format!("secret {id} is larger than {LARGEST} bytes")));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}
