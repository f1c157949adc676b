// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"connectrpc.com/connect"
	"k8s.io/apimachinery/pkg/types"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Defaults of Options.
const (
	defaultFresh    = time.Second
	defaultPatience = 1500 * time.Millisecond
	defaultTimeout  = 10 * time.Second
	// maxAsked bounds the machines that are asked at the same time.
	maxAsked = 64
)

// Options of a Collector. NodeName and Machines are required.
type Options struct {
	NodeName string
	// Machines are the pods of the node.
	Machines func() []provider.PodMachine
	// Host measures the node itself; nil, or an error, leaves that out.
	Host func() (Host, error)
	// LogUsage is what the log of each container of a pod takes on disk; nil, or an error,
	// leaves that out.
	LogUsage func(types.UID) (map[string]provider.LogUsage, error)
	// Fresh is how old a measurement may be to be told again. Zero: 1 s.
	Fresh time.Duration
	// Patience is how long an answer waits for a machine, and Timeout how long a machine
	// has for its own. Zero: 1.5 s and 10 s.
	Patience, Timeout time.Duration
	// Logger; nil means silence.
	Logger *slog.Logger
}

// Collector measures. It is safe for concurrent use.
type Collector struct {
	opts    Options
	started time.Time
	slots   chan struct{}   // one for each machine that is being asked
	ctx     context.Context //nolint:containedctx // the life of the collector, which its questions end with
	cancel  context.CancelFunc
	asking  sync.WaitGroup

	mu       sync.Mutex
	closed   bool                      // guarded by mu, like all below
	machines map[types.UID]*measurable // by pod
	node     sample                    // the one before the last
	// used is the processor time that machines used while they were watched, also those
	// that are gone.
	used time.Duration
}

// measurable is the machine of one pod.
type measurable struct {
	asked chan struct{} // closed when the answer is there; nil when it is not asked
	since time.Time     // when it was asked
	last  *measurement  // nil when it never answered
	prior map[string]sample
}

// measurement is what a machine has answered.
type measurement struct {
	at    time.Time
	stats *agentv1.StatsResponse
	// rates are the processor time per second by container id, and "" for the machine.
	rates map[string]uint64
}

// sample is a counter of processor time at a time.
type sample struct {
	at   time.Time
	nano int64
}

// New makes a collector.
func New(opts Options) (*Collector, error) {
	if opts.NodeName == "" || opts.Machines == nil {
		return nil, errors.New("stats: NodeName and Machines are required")
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&opts.Fresh, defaultFresh}, {&opts.Patience, defaultPatience}, {&opts.Timeout, defaultTimeout}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Collector{opts: opts, started: time.Now(), slots: make(chan struct{}, maxAsked), machines: map[types.UID]*measurable{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all questions and waits for them.
func (c *Collector) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.asking.Wait()
	return nil
}

// Summary measures the node and every pod that has a machine. missing is the number of
// pods whose machines did not answer: they are in the summary without numbers. The error
// is ctx's.
func (c *Collector) Summary(ctx context.Context) (summary *statsv1alpha1.Summary, missing int, err error) {
	pods := c.opts.Machines()
	answers := c.ask(pods)
	patience := time.NewTimer(c.opts.Patience)
	defer patience.Stop()
	over := false
	for _, a := range answers {
		if a == nil || over {
			continue
		}
		select {
		case <-a:
		case <-patience.C:
			over = true
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	summary = &statsv1alpha1.Summary{Pods: []statsv1alpha1.PodStats{}}
	for _, p := range pods {
		if p.Dial == nil {
			continue
		}
		c.mu.Lock()
		var last *measurement
		if m := c.machines[p.Pod.UID]; m != nil {
			last = m.last
		}
		c.mu.Unlock()
		if last != nil && time.Since(last.at) > c.opts.Fresh+2*c.opts.Patience {
			last = nil
		}
		if last == nil {
			missing++
		}
		summary.Pods = append(summary.Pods, podStats(p, last, c.opts.LogUsage))
	}
	summary.Node = c.nodeStats()
	return summary, missing, nil
}

// ask asks every machine that has not just answered. It returns what is closed at the
// answers that are worth waiting for.
func (c *Collector) ask(pods []provider.PodMachine) []<-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	here := map[types.UID]bool{}
	var answers []<-chan struct{}
	for _, p := range pods {
		if p.Dial == nil || c.closed {
			continue
		}
		uid := p.Pod.UID
		here[uid] = true
		m := c.machines[uid]
		if m == nil {
			m = &measurable{prior: map[string]sample{}}
			c.machines[uid] = m
		}
		switch {
		case m.asked != nil && now.Sub(m.since) >= c.opts.Patience:
			continue // somebody has waited for it already
		case m.asked == nil && m.last != nil && now.Sub(m.last.at) < c.opts.Fresh:
			continue
		case m.asked == nil:
			m.asked, m.since = make(chan struct{}), now
			c.asking.Go(func() { c.measure(p, m) })
		}
		answers = append(answers, m.asked)
	}
	for uid, m := range c.machines {
		if !here[uid] && m.asked == nil {
			delete(c.machines, uid)
		}
	}
	return answers
}

// measure asks one machine.
func (c *Collector) measure(p provider.PodMachine, m *measurable) {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.Timeout)
	defer cancel()
	stats, err := c.statsOf(ctx, p.Dial)
	if err != nil && c.ctx.Err() == nil {
		c.opts.Logger.Debug("Machine did not tell what it uses", "pod", p.Pod.Namespace+"/"+p.Pod.Name, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		if before, ok := m.prior[""]; ok && before.nano >= 0 && stats.GetCpuNano() > before.nano {
			// No machine uses more than there is, whatever its guest says.
			c.used += min(time.Duration(stats.GetCpuNano()-before.nano), time.Since(before.at)*time.Duration(runtime.NumCPU()))
		}
		m.last = measured(stats, time.Now(), m.prior)
	}
	close(m.asked)
	m.asked = nil
}

func (c *Collector) statsOf(ctx context.Context, dial provider.Dial) (*agentv1.StatsResponse, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	g, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := g.Agent.Stats(ctx, connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// measured makes a measurement of an answer, with the rates since the one before, which
// prior holds.
func measured(stats *agentv1.StatsResponse, at time.Time, prior map[string]sample) *measurement {
	m := &measurement{at: at, stats: stats, rates: map[string]uint64{}}
	now := map[string]sample{"": {at: at, nano: stats.GetCpuNano()}}
	for i, s := range stats.GetContainers() {
		if i == maxContainers {
			break
		}
		if s.GetId() != "" {
			now[s.GetId()] = sample{at: at, nano: s.GetCpuNano()}
		}
	}
	for id, s := range now {
		if rate, ok := rateOf(prior[id], s); ok {
			m.rates[id] = rate
		}
	}
	clear(prior)
	for id, s := range now {
		prior[id] = s
	}
	return m
}

// rateOf is the processor time per second between two samples; false when there is none.
func rateOf(from, to sample) (uint64, bool) {
	took := to.at.Sub(from.at)
	if from.at.IsZero() || took < minRateInterval || to.nano < from.nano || from.nano < 0 {
		return 0, false
	}
	return uint64(float64(to.nano-from.nano) / took.Seconds()), true
}

const (
	// minRateInterval is the time between two samples that tell a rate.
	minRateInterval = 100 * time.Millisecond
	// maxContainers bounds the containers of one answer: the agent's own limit.
	maxContainers = 256
)
