//! Secrets of the client.

use bytes::Bytes;
use castor_proto::secrets::GetSecretRequest;
use castor_proto::secrets::secrets_client::SecretsClient;

use crate::{Group, SessionError};

/// The secret `id`; `None` if no client of the group has it.
pub async fn get(group: &Group, id: &str) -> Result<Option<Bytes>, SessionError> {
    let answer = group.any(|caller| async move {
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        let mut client = SecretsClient::new(caller.channel());
        Ok(caller.call(client.get_secret(request)).await?.into_inner().data)
    });
    match answer.await {
        Ok(secret) => Ok(Some(secret)),
        // That a client cannot be reached is another matter.
        Err(SessionError::Status(status)) if SessionError::from((*status).clone()).is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}
