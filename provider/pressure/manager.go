// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

const (
	// defaultEvery is how often the host is measured: a few system calls. The kubelet looks
	// every ten seconds, and a disk of this decade can take ten gigabytes in that time.
	defaultEvery = 2 * time.Second
	// defaultSettle is the pause between a step that frees something and the next
	// measurement: file systems give deleted blocks back behind the deletion.
	defaultSettle = time.Second
	// stepTimeout bounds one step.
	stepTimeout = time.Minute
	// again is after how long a step that had nothing left to free is tried again while the
	// shortage lasts.
	again = time.Minute
	// hardGrace is the kubelet's grace of a pod that is ended at a hard threshold.
	hardGrace = time.Second
	// goneTimeout is how long, beyond its grace, an ended pod's machine is waited for, as the
	// kubelet does.
	goneTimeout = 30 * time.Second
)

// Supply is what a manager asks of the machines' supply. *warmpool.Supply implements it.
type Supply interface {
	// Press keeps pools from being filled for this reason; without one they are again.
	Press(warmpool.Skip)
	// Shed ends the warm machine that is the least loss, and waits until it is gone. False:
	// there is none. reserved: also one that is kept from pods' demand.
	Shed(ctx context.Context, reserved bool) (bool, error)
}

// Observer is told what is measured and done. Its methods must not block.
type Observer interface {
	// Available tells what there is of a resource, and how far its relief has to go.
	Available(r Resource, bytes int64, depth Depth)
	// Relieved counts a step that was taken for a resource.
	Relieved(step Step, r Resource)
}

// Options of a Manager. Measure, Supply, Pods and Evict are required.
type Options struct {
	// Measure measures the host.
	Measure func() (Measurement, error)
	// Disk, Images and Memory are the floors.
	Disk, Images, Memory Floors
	// Transition is how long the pools wait when a pressure is over, as long as the node
	// shows it.
	Transition time.Duration
	// MaxPodGrace bounds the grace of pods that are ended at a soft threshold.
	MaxPodGrace time.Duration
	Supply      Supply
	// CollectSnapshots and CollectImages remove what nobody uses, the least recently used
	// first, until need bytes are free; they return how many are. nil: nothing to collect.
	CollectSnapshots, CollectImages func(ctx context.Context, need int64) (int64, error)
	// Pods measures the running pods.
	Pods func(ctx context.Context) ([]Pod, error)
	// Evict ends a pod, and returns when its machine is gone or ctx ends.
	Evict func(ctx context.Context, uid types.UID, message string, grace time.Duration) error
	// Changed is called when what Pressure says has changed; nil for nobody.
	Changed func()
	// Observer may be nil.
	Observer Observer
	// Logger; nil discards.
	Logger *slog.Logger

	every, settle time.Duration // tests only
}

// Manager watches what a host has left, and relieves it.
type Manager struct {
	opts Options

	mu       sync.Mutex
	standing map[Resource]standing // guarded by mu
	shared   bool                  // guarded by mu; images are on the machines' disk
	refused  map[Resource]bool     // guarded by mu; pods are
	vain     map[Resource]bool     // guarded by mu; ending pods would not help
	running  bool                  // guarded by mu; Run has looked once

	// What follows belongs to Run.
	done  map[task]time.Time // steps with nothing left to free, and when that was found
	press warmpool.Skip
}

// New makes a manager. It measures nothing yet.
func New(opts Options) (*Manager, error) {
	if opts.Measure == nil || opts.Supply == nil || opts.Pods == nil || opts.Evict == nil {
		return nil, errors.New("pressure: Measure, Supply, Pods and Evict are required")
	}
	opts.every, opts.settle = cmp.Or(opts.every, defaultEvery), cmp.Or(opts.settle, defaultSettle)
	if opts.Changed == nil {
		opts.Changed = func() {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Manager{opts: opts, standing: map[Resource]standing{}, refused: map[Resource]bool{}, vain: map[Resource]bool{}, done: map[task]time.Time{}}, nil
}

// Run watches until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	ticker := time.NewTicker(m.opts.every)
	defer ticker.Stop()
	failed := false
	for {
		err := m.relieve(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			m.opts.Logger.Error("The host could not be measured; trying again", "error", err)
		}
		failed = err != nil
		if !failed {
			m.mu.Lock()
			m.running = true
			m.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// relieve measures, and takes steps until there is no more to do now.
func (m *Manager) relieve(ctx context.Context) error {
	for {
		now := time.Now()
		need, skip, err := m.observe(now)
		if err != nil {
			return err
		}
		// It is over, or something else is what keeps them from being filled now.
		if m.press.Reason != "" && skip.Reason != m.press.Reason {
			m.press = skip
			m.opts.Supply.Press(skip)
		}
		m.mu.Lock()
		shared := m.shared
		m.mu.Unlock()
		for t, at := range m.done {
			lasting := t.step == StepStopRefills || t.step == StepRefusePods
			if need[t.resource] < depthOf(t.step) || !lasting && now.Sub(at) >= again {
				delete(m.done, t)
			}
		}
		t, ok := nextTask(need, shared, func(t task) bool {
			if t.step == StepStopRefills {
				return m.press.Reason != ""
			}
			_, done := m.done[t]
			return done
		})
		if !ok || ctx.Err() != nil {
			return nil //nolint:nilerr // to be told to end is no failure
		}
		freed := m.take(ctx, t)
		if !freed {
			m.done[t] = time.Now()
			continue
		}
		if m.opts.Observer != nil {
			m.opts.Observer.Relieved(t.step, t.resource)
		}
		if t.step == StepStopRefills || t.step == StepRefusePods {
			m.done[t] = time.Now()
			continue // frees nothing that would have to be waited for
		}
		if !sleep(ctx, m.opts.settle) {
			return nil
		}
	}
}

// observe measures and judges. What was refused and need not be any more is not refused. skip
// is why pools are not to be filled.
func (m *Manager) observe(now time.Time) (need map[Resource]Depth, skip warmpool.Skip, err error) {
	measured, err := m.opts.Measure()
	if err != nil {
		return nil, skip, err
	}
	need = map[Resource]Depth{}
	changed := false
	var worst Resource
	m.mu.Lock()
	m.shared = measured.Images == nil
	for _, r := range resources {
		reading := measured.of(r)
		if reading == nil {
			delete(m.standing, r)
			continue
		}
		was := m.standing[r]
		s := judge(was, *reading, m.floors(r), m.opts.Transition, now)
		m.standing[r], need[r] = s, s.depth
		if s.depth > need[worst] {
			worst = r
		}
		if s.depth < Shed && m.refused[r] {
			m.refused[r], changed = false, true
		}
		if s.depth < Evict {
			m.vain[r] = false
		}
		if was.depth != s.depth {
			m.opts.Logger.Info("What the host has left has changed", "resource", string(r), "depth", int(s.depth), "was", int(was.depth), "measured", s.text)
		}
	}
	if worst != "" {
		skip = refillSkip(worst, m.standing[worst])
	}
	m.mu.Unlock()
	if m.opts.Observer != nil {
		for _, r := range resources {
			if reading := measured.of(r); reading != nil {
				m.opts.Observer.Available(r, reading.Available, need[r])
			}
		}
	}
	if changed {
		m.opts.Changed()
	}
	return need, skip, nil
}

func (m *Manager) floors(r Resource) Floors {
	switch r {
	case Memory:
		return m.opts.Memory
	case Images:
		return m.opts.Images
	case Disk:
	}
	return m.opts.Disk
}

// refillSkip is what pools say that are not filled.
func refillSkip(r Resource, s standing) warmpool.Skip {
	skip := warmpool.Skip{Reason: warmpool.SkipDiskPressure, Message: "the node is short of disk: " + s.text}
	if r == Memory {
		skip = warmpool.Skip{Reason: warmpool.SkipMemoryPressure, Message: "the node is short of memory: " + s.text}
	}
	if s.depth == Brake && s.lack == 0 {
		skip.Message += "; pools are filled when more is free, and has been for a while"
	}
	return skip
}

// take takes a step; false when there is nothing to free by it.
func (m *Manager) take(ctx context.Context, t task) (freed bool) {
	m.mu.Lock()
	s := m.standing[t.resource]
	m.mu.Unlock()
	log := m.opts.Logger.With("step", string(t.step), "resource", string(t.resource))
	if t.step == StepEvictPod {
		freed, err := m.evictPod(ctx, t.resource, s)
		if err != nil && ctx.Err() == nil {
			log.Error("A pod that was to be ended for the node's sake", "error", err)
		}
		return freed
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var err error
	switch t.step {
	case StepStopRefills:
		m.press = refillSkip(t.resource, s)
		m.opts.Supply.Press(m.press)
		freed = true
	case StepEvictWarm, StepEvictReserved:
		freed, err = m.opts.Supply.Shed(ctx, t.step == StepEvictReserved)
	case StepCollectSnapshots:
		freed, err = collect(ctx, m.opts.CollectSnapshots, s.lack)
	case StepCollectImages:
		freed, err = collect(ctx, m.opts.CollectImages, s.lack)
	case StepRefusePods:
		m.mu.Lock()
		m.refused[t.resource] = true
		m.mu.Unlock()
		m.opts.Changed()
		freed = true
	case StepEvictPod:
	}
	if err != nil && ctx.Err() == nil {
		log.Error("The host could not be relieved", "error", err)
	} else if freed {
		log.Info("Relieving the host", "measured", s.text)
	}
	return freed
}

func collect(ctx context.Context, f func(context.Context, int64) (int64, error), need int64) (bool, error) {
	if f == nil {
		return false, nil
	}
	n, err := f(ctx, need)
	return n > 0, err
}

// evictPod ends one pod, and waits until its machine is gone.
func (m *Manager) evictPod(ctx context.Context, r Resource, s standing) (bool, error) {
	mctx, cancel := context.WithTimeout(ctx, stepTimeout)
	pods, err := m.opts.Pods(mctx)
	cancel()
	if err != nil {
		return false, err
	}
	pod, ok := choose(pods, r, s.evictLack)
	m.mu.Lock()
	told := m.vain[r]
	m.vain[r] = !ok
	m.mu.Unlock()
	if !ok {
		if !told {
			m.opts.Logger.Warn("Ending pods would not relieve the host: what fills it is not theirs", "resource", string(r), "pods", len(pods), "measured", s.text)
		}
		return false, nil
	}
	grace := hardGrace
	if !s.hard {
		grace = m.opts.MaxPodGrace
	}
	text := message(pod, r, s)
	m.opts.Logger.Warn("Ending a pod for the node's sake", "pod", pod.Name, "podUID", pod.UID, "message", text)
	ectx, cancel := context.WithTimeout(ctx, grace+goneTimeout)
	defer cancel()
	if err := m.opts.Evict(ectx, pod.UID, text, grace); err != nil {
		return true, fmt.Errorf("end pod %s: %w", pod.Name, err)
	}
	return true, nil
}

// Pressure is what the node says: short of what, now that what nobody uses is gone. It
// measures by itself until Run has looked for the first time, and says what it measures: a
// node that comes back to a full disk takes no pods meanwhile.
func (m *Manager) Pressure() (provider.Pressure, error) {
	m.mu.Lock()
	running := m.running
	m.mu.Unlock()
	if !running {
		if _, _, err := m.observe(time.Now()); err != nil {
			return provider.Pressure{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	short := func(r Resource) provider.Measured {
		s, ok := m.standing[r]
		if !ok {
			return provider.Measured{}
		}
		out := provider.Measured{Short: s.depth >= Shed && (m.refused[r] || !running), Message: s.text}
		if m.vain[r] {
			out.Message += "; ending pods would not make enough room"
		}
		return out
	}
	p := provider.Pressure{Disk: short(Disk), Memory: short(Memory)}
	if images := short(Images); !m.shared {
		p.Disk.Short = p.Disk.Short || images.Short
		p.Disk.Message = "state: " + p.Disk.Message + "; images: " + images.Message
	}
	return p, nil
}

// sleep waits; false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
