use std::error::Error as _;
use std::{future::Future, time::Duration};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Error},
};

use crate::{VERSION, v1::store_image_task_service_client::StoreImageTaskServiceClient};

/// Bytes that a message may have.
pub const MAX_MESSAGE: usize = 64 << 20;
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The stub, with what is put before each call.
pub type Gateway<I> = StoreImageTaskServiceClient<InterceptedService<Channel, I>>;

/// How to reach a gateway at `http://host:port` or `https://host:port`, with the keepalive it is made for.
///
/// # Errors
///
/// The address is malformed.
pub fn endpoint(address: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(address.to_owned())?
        .user_agent(format!("imagetasks-rust/{VERSION}"))?
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10)))
}

/// The stub on an endpoint; nothing is dialled before the first call.
pub fn stub<I: Interceptor>(endpoint: &Endpoint, interceptor: I) -> Gateway<I> {
    StoreImageTaskServiceClient::with_interceptor(endpoint.connect_lazy(), interceptor)
        .max_decoding_message_size(MAX_MESSAGE)
}

/// Sends a bearer token, if there is one, with each call; over the network only with TLS.
///
/// # Errors
///
/// The token has characters that a header cannot have.
pub fn token(
    token: Option<&str>,
) -> Result<impl Interceptor + Clone + use<>, tonic::metadata::errors::InvalidMetadataValue> {
    let value: Option<MetadataValue<Ascii>> = token
        .map(|token| format!("Bearer {token}").parse())
        .transpose()?;
    Ok(move |mut request: Request<()>| {
        if let Some(value) = &value {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    })
}

/// Makes a call, and again where it was UNAVAILABLE, or refused with CANCELLED for want of room in the gateway's
/// queue: four attempts, as in a service config of gRPC's.
///
/// Every method is free of side effects. RESOURCE_EXHAUSTED is not tried again: EC2's allowance is spent.
/// A stream is tried again until it has begun.
///
/// # Errors
///
/// What the last attempt failed with.
pub async fn retrying<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(status) if may_be_tried_again(&status) => {
                let Some(asked) = pushback(&status) else {
                    return Err(status);
                };
                tokio::time::sleep(asked.unwrap_or(pause)).await;
                pause = (pause * 3).min(LONGEST_PAUSE);
            }
            done => return done,
        }
    }
    call().await
}

fn may_be_tried_again(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // Of the gateway. What ended here, as by a deadline, has a cause.
        Code::Cancelled => status.source().is_none(),
        _ => false,
    }
}

/// How long the gateway asks to wait: `None` is for ever, `Some(None)` if it says nothing.
fn pushback(status: &Status) -> Option<Option<Duration>> {
    match status.metadata().get("grpc-retry-pushback-ms") {
        None => Some(None),
        Some(said) => {
            let milliseconds = said.to_str().ok()?.parse().ok()?;
            Some(Some(Duration::from_millis(milliseconds)))
        }
    }
}
