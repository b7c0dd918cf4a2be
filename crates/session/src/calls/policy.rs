//! The client's judgement of a source.

use castor_proto::policysession::policy_verifier_client::PolicyVerifierClient;
use castor_proto::policysession::{CheckPolicyRequest, CheckPolicyResponse};
use castor_wire::limited;

use crate::{Caller, SessionError};

/// Asks the client; it may want to know more before it decides.
pub async fn check(caller: &Caller, request: CheckPolicyRequest) -> Result<CheckPolicyResponse, SessionError> {
    let mut client = limited!(PolicyVerifierClient::new(caller.channel()));
    Ok(caller.call(client.check_policy(request)).await?.into_inner())
}
