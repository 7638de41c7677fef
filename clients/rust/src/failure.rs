use std::{collections::HashMap, error::Error, fmt, time::Duration};

use prost::Message;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::pb;

use crate::v1::{TargetFailures, target_failures};

const DOMAIN: &str = "imagetasks";

/// What a call failed with.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// gRPC's.
    pub code: Code,
    /// The text for people.
    pub message: String,
    /// A name of `ErrorReason` without its prefix; empty if the error is not the gateway's.
    pub reason: String,
    /// Of the error: account, region, awsErrorCode, awsRequestId, where they apply.
    pub metadata: HashMap<String, String>,
    /// How long to wait before asking again, if the gateway said.
    pub retry_delay: Option<Duration>,
    /// Those of the request at fault.
    pub fields: Vec<String>,
    /// Of each target, if all of several failed.
    pub target_failures: Vec<target_failures::Failure>,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let mut failure = Self {
            code: code(status),
            message: status.message().to_owned(),
            reason: String::new(),
            metadata: HashMap::new(),
            retry_delay: None,
            fields: Vec::new(),
            target_failures: Vec::new(),
        };
        // Damaged, or none: code and text remain.
        let said = pb::Status::decode(status.details()).unwrap_or_default();
        for detail in &said.details {
            // One of a later version, or damaged, is left out.
            let _ = failure.take(&detail.type_url, &detail.value);
        }
        failure
    }
}

/// What gRPC says of ends that came from no server: tonic calls a deadline CANCELLED, a cut UNKNOWN.
fn code(status: &Status) -> Code {
    let causes = || std::iter::successors(status.source(), |&cause| cause.source());
    match status.code() {
        Code::Cancelled if causes().any(|cause| cause.is::<TimeoutExpired>()) => {
            Code::DeadlineExceeded
        }
        Code::Unknown if causes().next().is_some() => Code::Unavailable,
        code => code,
    }
}

impl Failure {
    fn take(&mut self, url: &str, value: &[u8]) -> Result<(), prost::DecodeError> {
        match url.rsplit('/').next().unwrap_or_default() {
            "google.rpc.ErrorInfo" => {
                let info = pb::ErrorInfo::decode(value)?;
                if info.domain == DOMAIN {
                    self.reason = info.reason;
                    self.metadata = info.metadata;
                }
            }
            "google.rpc.RetryInfo" => {
                let delay = pb::RetryInfo::decode(value)?.retry_delay;
                self.retry_delay = delay.and_then(|delay| delay.try_into().ok());
            }
            "google.rpc.BadRequest" => {
                let violations = pb::BadRequest::decode(value)?.field_violations;
                self.fields = violations.into_iter().map(|each| each.field).collect();
            }
            "imagetasks.v1.TargetFailures" => {
                self.target_failures = TargetFailures::decode(value)?.failures;
            }
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => write!(to, "{:?}: {}", self.code, self.message),
            reason => write!(to, "{reason}: {}", self.message),
        }
    }
}

impl Error for Failure {}
