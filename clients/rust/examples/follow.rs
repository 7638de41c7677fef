//! Lists all tasks, page by page, then prints what changes: `follow http://host:port [region]`.
//!
//! The watch ends when the gateway closes it or the connection is lost; docs/watch.md says how to go on.

use std::{env, process::ExitCode, time::Duration};

use imagetasks::{
    Failure, Gateway, endpoint, retrying, stub, token,
    v1::{
        DescribeStoreImageTasksRequest, StoreImageTaskResult, TaskSelector,
        WatchStoreImageTasksRequest, watch_store_image_tasks_response::Event,
    },
};
use tonic::{Request, Status, service::Interceptor};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let address = env::args()
        .nth(1)
        .ok_or("follow http://host:port [region]")?;
    let regions: Vec<String> = env::args().skip(2).collect();
    let gateway = stub(&endpoint(&address)?, token(None)?);
    Ok(match follow(&gateway, regions).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(status) => {
            let failure = Failure::from(&status);
            eprintln!("follow: {failure}");
            if let Some(delay) = failure.retry_delay {
                eprintln!("follow: ask again in {delay:?}");
            }
            ExitCode::FAILURE
        }
    })
}

async fn follow<I: Interceptor + Clone>(
    gateway: &Gateway<I>,
    regions: Vec<String>,
) -> Result<(), Status> {
    let mut asked = DescribeStoreImageTasksRequest {
        regions: regions.clone(),
        ..Default::default()
    };
    loop {
        let page = retrying(|| {
            let (mut gateway, mut request) = (gateway.clone(), Request::new(asked.clone()));
            request.set_timeout(DEADLINE);
            async move { gateway.describe_store_image_tasks(request).await }
        });
        let page = page.await?.into_inner();
        page.store_image_task_results
            .iter()
            .for_each(|task| print("LISTED", task));
        match page.next_token.filter(|token| !token.is_empty()) {
            Some(token) => asked.next_token = Some(token),
            None => break,
        }
    }
    let selector = Some(TaskSelector {
        regions,
        ..Default::default()
    });
    let asked = WatchStoreImageTasksRequest {
        selector,
        ..Default::default()
    };
    let watch = retrying(|| {
        let (mut gateway, asked) = (gateway.clone(), asked.clone());
        async move { gateway.watch_store_image_tasks(asked).await }
    });
    let mut messages = watch.await?.into_inner();
    while let Some(message) = messages.message().await? {
        if let Some(Event::Changes(changes)) = message.event {
            for change in changes.changes {
                let what = change.r#type().as_str_name().trim_start_matches("TYPE_");
                print(what, &change.task.clone().unwrap_or_default());
            }
        }
    }
    Ok(())
}

fn print(what: &str, task: &StoreImageTaskResult) {
    let (state, percentage) = (task.ec2_store_task_state(), task.progress_percentage());
    println!(
        "{what} {} {} {} {state} {percentage}",
        task.account,
        task.region,
        task.ami_id()
    );
}
