//! Errors of a bridge as failures of the wire, and back. Details pass unchanged.

use castor_ops::BridgeError;
use castor_proto::rpc;
use castor_wire::Failure;

/// For the wire.
pub fn to_failure(error: &BridgeError) -> Failure {
    Failure::from_rpc(rpc::Status { code: error.code, message: error.message.clone(), details: error.details.clone() })
}

/// From the wire.
pub fn from_failure(failure: &Failure) -> BridgeError {
    let status = failure.to_rpc();
    BridgeError { code: status.code, message: status.message, details: status.details }
}
