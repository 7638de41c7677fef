/** A client of the imagetasks gateway: the store tasks of AMIs over all accounts and Regions. */

export type { Change, Stale } from "./change.js";
export { hasEnded } from "./change.js";
export { Client } from "./client.js";
export type { ConnectOptions } from "./connect.js";
export { connect } from "./connect.js";
export { CONTRACT_FINGERPRINT, VERSION } from "./contract.js";
export { Code, fromStatus, ImageTasksError } from "./errors.js";
export type { BareCallOptions, CallOptions } from "./stub.js";
export { Stub } from "./stub.js";
export type { WaitOptions } from "./wait.js";
export { Watch } from "./watch.js";
