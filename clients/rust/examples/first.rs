//! The program of README.md.

use imagetasks::{Failure, endpoint, stub, token, v1::DescribeStoreImageTasksRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or("http://127.0.0.1:50051".into());
    let mut gateway = stub(&endpoint(&address)?, token(None)?);
    match gateway
        .describe_store_image_tasks(DescribeStoreImageTasksRequest::default())
        .await
    {
        Ok(page) => page
            .get_ref()
            .store_image_task_results
            .iter()
            .for_each(|task| {
                println!(
                    "{} {} {} {}",
                    task.account,
                    task.region,
                    task.ami_id(),
                    task.progress_percentage()
                )
            }),
        Err(error) => eprintln!("{}", Failure::from(&error)),
    }
    Ok(())
}
