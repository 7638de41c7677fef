import type { ImageTasksError } from "./errors.js";

const FIRST_MS = 500;
const LONGEST_MS = 30_000;

/** Pauses that double, each shortened at random by up to a half, so that those who failed together part. */
export class Pauses {
  failures = 0;
  readonly #random: () => number;

  /** `random` gives a number from 0 to 1. */
  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** Milliseconds until the next attempt; not less than the error asks for. */
  next(error?: ImageTasksError): number {
    const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(this.failures, 16));
    this.failures += 1;
    // Everybody was told the same time: they part behind it.
    return (error?.retryDelayMs ?? 0) + (longest / 2) * (1 + this.#random());
  }

  reset(): void {
    this.failures = 0;
  }
}

/** Resolves to false if one of the signals came first. */
export function sleep(ms: number, signals: readonly AbortSignal[]): Promise<boolean> {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      for (const signal of signals) {
        signal.removeEventListener("abort", wake);
      }
      resolve(!signals.some((signal) => signal.aborted));
    };
    const timer = setTimeout(wake, ms);
    for (const signal of signals) {
      signal.addEventListener("abort", wake);
    }
    if (signals.some((signal) => signal.aborted)) {
      wake();
    }
  });
}
