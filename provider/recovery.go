// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// recovery measures how long a process takes until it has the machines again that an earlier
// one left to its pods: from its beginning until the last of them was adopted, or is known to
// be lost. One that does not answer is asked again and counts until that is decided. Nil
// measures nothing.
type recovery struct {
	began    time.Time
	log      *slog.Logger
	observer Observer // nil: nobody

	left     atomic.Int64 // machines nobody has yet, and one for as long as records are read
	machines atomic.Int64
}

func newRecovery(opts Options) *recovery {
	r := &recovery{began: opts.Began, log: opts.Logger, observer: opts.Observer}
	r.left.Store(1)
	return r
}

// expect counts a machine that is to be adopted.
func (r *recovery) expect() {
	if r == nil {
		return
	}
	r.left.Add(1)
	r.machines.Add(1)
}

// settle is called once for each machine that was expected, and once when all records were read.
func (r *recovery) settle() {
	if r == nil || r.left.Add(-1) != 0 || r.began.IsZero() || r.machines.Load() == 0 {
		return
	}
	took := time.Since(r.began)
	r.log.Info("Took over the machines of an earlier process", "machines", r.machines.Load(), "took", took.Round(time.Millisecond))
	if r.observer != nil {
		r.observer.ObserveSample(SampleRecovery, took)
	}
}
