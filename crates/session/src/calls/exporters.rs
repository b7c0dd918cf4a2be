//! Exporters that the client adds once it has seen the result.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_proto::session_exporter::exporter_client::ExporterClient;
use castor_proto::session_exporter::{ExporterRequest, FinalizeExportRequest, FindExportersRequest};
use castor_wire::limited;
use tonic::Code;

use crate::{Caller, SessionError};

/// The exporters that the client wants besides those of its request; none if it
/// does not do that.
pub async fn find(
    caller: &Caller,
    metadata: BTreeMap<String, Bytes>,
    references: Vec<String>,
) -> Result<Vec<ExporterRequest>, SessionError> {
    let mut client = limited!(ExporterClient::new(caller.channel()));
    let request = FindExportersRequest { metadata, refs: references };
    match caller.call(client.find_exporters(request)).await {
        Ok(response) => Ok(response.into_inner().exporters),
        Err(error) if matches!(error.code(), Code::Unimplemented | Code::Unavailable) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Tells the client what was exported.
pub async fn finalize(caller: &Caller, response: BTreeMap<String, String>) -> Result<(), SessionError> {
    let mut client = limited!(ExporterClient::new(caller.channel()));
    let request = FinalizeExportRequest { exporter_response: response };
    caller.call(client.finalize_export(request)).await.map(|_| ())
}
