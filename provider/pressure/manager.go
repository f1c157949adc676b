// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
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
	// measureTimeout bounds the measurement of the pods.
	measureTimeout = time.Minute
	// shedTimeout is how long a warm machine that is ended is waited for before the next one
	// has to go: one that cannot be deleted must not cost a pod its life.
	shedTimeout = 8 * time.Second
	// collectTimeout bounds a collection. Much may have to be deleted, and another collection
	// may be under way.
	collectTimeout = 5 * time.Minute
	// patience is how long the steps behind a step wait for it. Then they have their turn, and it
	// goes on beside them.
	patience = 10 * time.Second
	// again is after how long a step that had nothing left to free is tried again while the
	// shortage lasts.
	again = time.Minute
	// hardGrace is the kubelet's grace of a pod that is ended at a hard threshold.
	hardGrace = time.Second
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
	// Pods measures the pods that have a machine, those that end already among them.
	Pods func(ctx context.Context) ([]Pod, error)
	// Evict ends a pod and does not wait for that. Called again, the shorter grace counts.
	Evict func(uid types.UID, message string, grace time.Duration)
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
	done  map[task]time.Time      // steps with nothing left to free, and when that was found
	acts  map[task]*act           // steps under way
	wg    sync.WaitGroup          // of those
	told  map[types.UID]time.Time // pods that were ended, and by when; see choose
	press warmpool.Skip
}

// act is a step under way.
type act struct {
	began time.Time
	done  chan struct{}
	freed bool // valid after done
}

func (a *act) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
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
	return &Manager{opts: opts, standing: map[Resource]standing{}, refused: map[Resource]bool{}, vain: map[Resource]bool{}, done: map[task]time.Time{}, acts: map[task]*act{}, told: map[types.UID]time.Time{}}, nil
}

// Run watches until ctx ends, and what it has begun has ended.
func (m *Manager) Run(ctx context.Context) {
	defer m.wg.Wait()
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

// relieve measures, and takes steps until there is no more to do now. It never waits long for
// any of them: the host is measured all the time, and who waits for what is decided anew.
func (m *Manager) relieve(ctx context.Context) error {
	waits := map[task]bool{} // steps that wait for something now; those behind them do not
	for {
		if m.harvest() {
			clear(waits)
			if !sleep(ctx, m.opts.settle) {
				return nil
			}
			continue // others may have ended meanwhile
		}
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
			a := m.acts[t]
			return done || waits[t] || a != nil && now.Sub(a.began) >= patience
		})
		if !ok || ctx.Err() != nil {
			return nil //nolint:nilerr // to be told to end is no failure
		}
		switch t.step {
		case StepStopRefills, StepRefusePods: // what frees nothing needs not be waited for
			m.refuse(t)
			m.done[t] = now
			m.relieved(t)
		case StepEvictPod:
			switch m.evictPod(ctx, t.resource, now) {
			case moveNone:
				m.done[t] = now
			case moveWait:
				waits[t] = true
			case moveEnd:
				m.relieved(t)
				waits[t] = true
			}
		case StepEvictWarm, StepEvictReserved, StepCollectSnapshots, StepCollectImages:
			m.await(ctx, m.begin(ctx, t))
		}
	}
}

// begin begins a step that frees something, if it is not under way.
func (m *Manager) begin(ctx context.Context, t task) *act {
	if a := m.acts[t]; a != nil {
		return a
	}
	a := &act{began: time.Now(), done: make(chan struct{})}
	m.acts[t] = a
	m.mu.Lock()
	s := m.standing[t.resource]
	m.mu.Unlock()
	m.wg.Go(func() {
		defer close(a.done)
		a.freed = m.free(ctx, t, s)
	})
	return a
}

// await waits for a step until the host is to be measured again.
func (m *Manager) await(ctx context.Context, a *act) {
	timer := time.NewTimer(min(m.opts.every, patience))
	defer timer.Stop()
	select {
	case <-a.done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// harvest takes in what has ended; true when something was freed by it.
func (m *Manager) harvest() (freed bool) {
	for t, a := range m.acts {
		if !a.over() {
			continue
		}
		delete(m.acts, t)
		if a.freed {
			freed = true
			m.relieved(t)
		} else {
			m.done[t] = time.Now()
		}
	}
	return freed
}

// relieved tells of a step that was taken.
func (m *Manager) relieved(t task) {
	if m.opts.Observer != nil {
		m.opts.Observer.Relieved(t.step, t.resource)
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

// refuse takes a step that keeps others from taking more.
func (m *Manager) refuse(t task) {
	m.mu.Lock()
	s := m.standing[t.resource]
	if t.step == StepRefusePods {
		m.refused[t.resource] = true
	}
	m.mu.Unlock()
	m.log(t).Info("Relieving the host", "measured", s.text)
	if t.step == StepRefusePods {
		m.opts.Changed()
		return
	}
	m.press = refillSkip(t.resource, s)
	m.opts.Supply.Press(m.press)
}

// free takes a step that frees something; false when there is nothing to free by it. s is how
// the resource stood when it began.
func (m *Manager) free(ctx context.Context, t task, s standing) (freed bool) {
	timeout := collectTimeout
	if t.step == StepEvictWarm || t.step == StepEvictReserved {
		timeout = shedTimeout
	}
	fctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	switch t.step {
	case StepEvictWarm, StepEvictReserved:
		freed, err = m.opts.Supply.Shed(fctx, t.step == StepEvictReserved)
	case StepCollectSnapshots:
		freed, err = collect(fctx, m.opts.CollectSnapshots, s.lack)
	case StepCollectImages:
		freed, err = collect(fctx, m.opts.CollectImages, s.lack)
	case StepStopRefills, StepRefusePods, StepEvictPod:
	}
	if err != nil && ctx.Err() == nil {
		m.log(t).Error("The host could not be relieved", "error", err)
	} else if freed {
		m.log(t).Info("Relieving the host", "measured", s.text)
	}
	return freed
}

func (m *Manager) log(t task) *slog.Logger {
	return m.opts.Logger.With("step", string(t.step), "resource", string(t.resource))
}

func collect(ctx context.Context, f func(context.Context, int64) (int64, error), need int64) (bool, error) {
	if f == nil {
		return false, nil
	}
	n, err := f(ctx, need)
	return n > 0, err
}

// evictPod ends one pod, if that is what is to be done about the pods now.
func (m *Manager) evictPod(ctx context.Context, r Resource, now time.Time) move {
	mctx, cancel := context.WithTimeout(ctx, measureTimeout)
	pods, err := m.opts.Pods(mctx)
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			m.opts.Logger.Error("The pods could not be measured", "error", err)
		}
		return moveWait
	}
	maps.DeleteFunc(m.told, func(uid types.UID, _ time.Time) bool {
		return !slices.ContainsFunc(pods, func(p Pod) bool { return p.UID == uid })
	})
	m.mu.Lock()
	s := m.standing[r]
	m.mu.Unlock()
	grace := hardGrace
	if !s.hard {
		grace = m.opts.MaxPodGrace
	}
	pod, what := choose(pods, m.told, r, s.evictLack, now.Add(grace), now)
	m.mu.Lock()
	before := m.vain[r]
	m.vain[r] = what == moveNone
	m.mu.Unlock()
	switch what {
	case moveNone:
		if !before {
			m.opts.Logger.Warn("Ending pods would not relieve the host: what fills it is not theirs", "resource", string(r), "pods", len(pods), "measured", s.text)
		}
	case moveWait:
	case moveEnd:
		text := message(pod, r, s)
		m.opts.Logger.Warn("Ending a pod for the node's sake", "pod", pod.Name, "podUID", pod.UID, "grace", grace, "message", text)
		m.told[pod.UID] = now.Add(grace)
		m.opts.Evict(pod.UID, text, grace)
	}
	return what
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
