package imagetasks

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// pauses double, each shortened at random by up to a half, so that those who failed together part.
type pauses struct {
	failures int
	// random gives a number from 0 to 1.
	random func() float64
}

func newPauses() pauses { return pauses{random: rand.Float64} }

// next is the time until the next attempt; not less than the error asks for.
func (p *pauses) next(err *Error) time.Duration {
	longest := min(longestPause, firstPause<<min(p.failures, 16))
	p.failures++
	pause := longest/2 + time.Duration(p.random()*float64(longest/2))
	if err != nil && err.RetryDelay != nil {
		// Everybody was told the same time: they part behind it.
		pause += *err.RetryDelay
	}
	return pause
}

func (p *pauses) reset() { p.failures = 0 }

// sleep returns false if the context ended first.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
