// Package imagetasks is a client of the imagetasks gateway: the store tasks of
// AMIs over all accounts and Regions.
//
//	client, err := imagetasks.Connect("127.0.0.1:50051")
//	for task, err := range client.Tasks(ctx, &pb.DescribeStoreImageTasksRequest{}) {
//
// What it returns are the contract's own messages (package imagetasksv1); what
// it fails with is *Error.
package imagetasks
