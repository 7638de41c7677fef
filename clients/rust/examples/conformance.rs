//! Rust's runner of the conformance suite; docs/adding-a-language.md has its protocol.

use std::{collections::BTreeMap, fs, future::Future, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use imagetasks::{
    Failure, Gateway, endpoint, retrying, stub, token,
    v1::{StoreImageTaskResult, *},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig},
};

type Fault = Box<dyn std::error::Error>;
type Page = stream_store_image_tasks_response::Event;
type Watched = watch_store_image_tasks_response::Event;

struct Run {
    command: Value,
    told: u64,
    received: BTreeMap<String, String>,
}

enum Stop {
    Left,
    Failed(Status),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Value = serde_json::from_str(&line)?;
        let seconds = command["cancel_after_seconds"].as_f64();
        let mut run = Run {
            command,
            told: 0,
            received: BTreeMap::new(),
        };
        let patience = Duration::from_secs_f64(seconds.unwrap_or(1e6));
        let last = match timeout(patience, run.all()).await {
            Err(_) => json!({"event": "cancelled"}),
            Ok(done) => match done? {
                Ok(()) => json!({"event": "end", "metadata": run.received}),
                Err(Stop::Left) => json!({"event": "cancelled"}),
                Err(Stop::Failed(status)) => failure(&Failure::from(&status)),
            },
        };
        println!("{last}");
    }
    Ok(())
}

impl Run {
    async fn all(&mut self) -> Result<Result<(), Stop>, Fault> {
        let address = self.command["endpoint"].as_str().ok_or("no endpoint")?;
        let endpoint = match self.command["ca"].as_str() {
            None => endpoint(&format!("http://{address}"))?,
            Some(path) => endpoint(&format!("https://{address}"))?.tls_config(
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(path)?)),
            )?,
        };
        let gateway = stub(&endpoint, token(self.command["token"].as_str())?);
        let raw = BASE64.decode(self.command["request"].as_str().ok_or("no request")?)?;
        let call = self.command["call"].as_str().ok_or("no call")?.to_owned();
        // tonic ends a call at its deadline only until it has begun.
        let patience = self.seconds().filter(|_| call != "list");
        let deadline = patience.unwrap_or(Duration::from_secs(1_000_000));
        let observed = timeout(deadline, self.observe(gateway, &call, &raw)).await;
        Ok(observed.unwrap_or_else(|_| Err(Status::deadline_exceeded("").into())))
    }

    async fn observe<I: Interceptor + Clone>(
        &mut self,
        gateway: Gateway<I>,
        call: &str,
        raw: &[u8],
    ) -> Result<(), Stop> {
        match call {
            "describe" => {
                let page = self
                    .unary(raw, |request| {
                        let mut gateway = gateway.clone();
                        async move { gateway.describe_store_image_tasks(request).await }
                    })
                    .await?;
                self.tell(&page, page.store_image_task_results.iter())
            }
            "list" => {
                let mut asked: DescribeStoreImageTasksRequest = parsed(raw)?;
                loop {
                    let page = self
                        .unary(&asked.encode_to_vec(), |request| {
                            let mut gateway = gateway.clone();
                            async move { gateway.describe_store_image_tasks(request).await }
                        })
                        .await?;
                    self.tell(&page, page.store_image_task_results.iter())?;
                    match page.next_token.filter(|token| !token.is_empty()) {
                        Some(token) => asked.next_token = Some(token),
                        None => return Ok(()),
                    }
                }
            }
            "targets" => {
                let answer = self
                    .unary(raw, |request| {
                        let mut gateway = gateway.clone();
                        async move { gateway.list_targets(request).await }
                    })
                    .await?;
                self.tell(&answer, [].iter())
            }
            "raw_wait" => {
                let answer = self
                    .unary(raw, |request| {
                        let mut gateway = gateway.clone();
                        async move { gateway.wait_store_image_tasks(request).await }
                    })
                    .await?;
                self.tell(&answer, answer.store_image_task_results.iter())
            }
            "stream" => {
                let mut messages: Streaming<StreamStoreImageTasksResponse> = self
                    .unary(raw, |request| {
                        let mut gateway = gateway.clone();
                        async move { gateway.stream_store_image_tasks(request).await }
                    })
                    .await?;
                while let Some(message) = messages.message().await? {
                    match &message.event {
                        Some(Page::Page(page)) => {
                            self.tell(&message, page.store_image_task_results.iter())?
                        }
                        _ => self.tell(&message, [].iter())?,
                    }
                }
                Ok(())
            }
            "raw_watch" => {
                let mut messages: Streaming<WatchStoreImageTasksResponse> = self
                    .unary(raw, |request| {
                        let mut gateway = gateway.clone();
                        async move { gateway.watch_store_image_tasks(request).await }
                    })
                    .await?;
                while let Some(message) = messages.message().await? {
                    match &message.event {
                        Some(Watched::Changes(told)) => self.tell(
                            &message,
                            told.changes.iter().filter_map(|c| c.task.as_ref()),
                        )?,
                        _ => self.tell(&message, [].iter())?,
                    }
                }
                Ok(())
            }
            other => Err(Status::internal(format!("no such call: {other}")).into()),
        }
    }

    fn seconds(&self) -> Option<Duration> {
        self.command["timeout"]
            .as_f64()
            .map(Duration::from_secs_f64)
    }

    async fn unary<M: Message + Default + Clone, R, F>(
        &mut self,
        raw: &[u8],
        mut call: impl FnMut(Request<M>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let message: M = parsed(raw)?;
        let response = retrying(|| {
            let mut request = Request::new(message.clone());
            if let Some(patience) = self.seconds() {
                request.set_timeout(patience);
            }
            for (key, value) in self.command["metadata"].as_object().into_iter().flatten() {
                put(
                    request.metadata_mut(),
                    key,
                    value.as_str().unwrap_or_default(),
                );
            }
            call(request)
        });
        let (metadata, body, _) = response.await?.into_parts();
        self.received = received(&metadata);
        Ok(body)
    }

    fn tell<'a>(
        &mut self,
        message: &impl Message,
        tasks: impl Iterator<Item = &'a StoreImageTaskResult>,
    ) -> Result<(), Stop> {
        let bytes = BASE64.encode(message.encode_to_vec());
        let tasks: Vec<Value> = tasks.map(task).collect();
        println!(
            "{}",
            json!({"event": "message", "bytes": bytes, "tasks": tasks})
        );
        self.told += 1;
        if self.command["cancel_after"] == self.told {
            Err(Stop::Left)
        } else {
            Ok(())
        }
    }
}

fn parsed<M: Message + Default>(raw: &[u8]) -> Result<M, Status> {
    M::decode(raw).map_err(|error| Status::internal(error.to_string()))
}

fn put(metadata: &mut MetadataMap, key: &str, value: &str) {
    if key.ends_with("-bin") {
        let key = MetadataKey::from_bytes(key.as_bytes()).expect("a key");
        let raw = BASE64.decode(value).expect("base64");
        metadata.insert_bin(key, MetadataValue::from_bytes(&raw));
    } else {
        let key = MetadataKey::from_bytes(key.as_bytes()).expect("a key");
        metadata.insert(key, value.parse().expect("a value"));
    }
}

fn received(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let said = metadata.iter().map(|each| match each {
        KeyAndValueRef::Ascii(key, value) => (
            key.to_string(),
            value.to_str().unwrap_or_default().to_owned(),
        ),
        KeyAndValueRef::Binary(key, value) => (
            key.to_string(),
            BASE64.encode(value.to_bytes().unwrap_or_default()),
        ),
    });
    said.filter(|(key, _)| key.starts_with("x-conformance-"))
        .collect()
}

fn task(task: &StoreImageTaskResult) -> Value {
    json!({
        "task_id": task.task_id, "ami_id": task.ami_id, "percentage": task.progress_percentage,
        "state": task.store_task_state, "ec2_state": task.ec2_store_task_state,
        "failure": task.store_task_failure_reason,
    })
}

fn failure(failure: &Failure) -> Value {
    let of = |name| failure.metadata.get(name).cloned().unwrap_or_default();
    let failures = failure.target_failures.iter().map(|each| {
        json!({"account": each.account, "region": each.region, "code": each.code, "reason": each.reason})
    });
    json!({
        "event": "error", "code": code_name(failure.code), "message": failure.message,
        "reason": failure.reason, "account": of("account"), "region": of("region"),
        "aws_error_code": of("awsErrorCode"), "aws_request_id": of("awsRequestId"),
        "retry_delay": failure.retry_delay.map(|delay| delay.as_secs_f64()),
        "fields": failure.fields, "target_failures": failures.collect::<Vec<_>>(),
    })
}

/// gRPC's names: DeadlineExceeded is DEADLINE_EXCEEDED.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
