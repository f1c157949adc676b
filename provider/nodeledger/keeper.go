// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Supply is what keeps the targets. *warmpool.Supply implements it. Safe for
// concurrent use; nothing in it blocks.
type Supply interface {
	// SetTargets replaces the targets.
	SetTargets(targets []warmpool.Target)
	// Status is the supply now.
	Status() warmpool.Status
	// Changes holds one when Status may return something new. Only the Keeper reads it.
	Changes() <-chan struct{}
}

// Options of a Keeper. All but the logger are required.
type Options struct {
	API      API
	NodeName string
	Supply   Supply
	Limits   Limits
	// Logger; nil discards.
	Logger *slog.Logger
}

// Keeper connects a supply with its node's ledger. It is the provider's Templates and
// Pools. Safe for concurrent use.
type Keeper struct {
	opts      Options
	log       *slog.Logger
	bell      chan struct{} // holds one when the status may be another
	changes   chan struct{} // holds one when Pools may be others
	templates templateList

	mu      sync.Mutex
	current *v1alpha1.NodeLedger // guarded by mu; as the API server has it; nil: it has none
	listed  bool                 // guarded by mu; the API server has said whether it has one
	applied applied              // guarded by mu
}

// applied is the specification that the supply keeps.
type applied struct {
	uid        types.UID
	generation int64
	targets    []warmpool.Target
	faults     []Fault
}

var (
	_ provider.Templates = (*Keeper)(nil)
	_ provider.Pools     = (*Keeper)(nil)
)

// New makes a keeper. It starts nothing.
func New(opts Options) (*Keeper, error) {
	var errs []error
	for name, missing := range map[string]bool{"API": opts.API == nil, "NodeName": opts.NodeName == "", "Supply": opts.Supply == nil, "Limits.ImageSlots": opts.Limits.ImageSlots <= 0} {
		if missing {
			errs = append(errs, fmt.Errorf("nodeledger options: %s is required", name))
		}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{opts: opts, log: opts.Logger, bell: make(chan struct{}, 1), changes: make(chan struct{}, 1)}
	k.templates.limits = opts.Limits
	return k, errors.Join(errs...)
}

// Run watches the ledger and the templates and reports, until ctx ends. It needs
// nothing of the cluster to be there, and fails at nothing. It may be called once.
func (k *Keeper) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.watchLedger(ctx) })
	wg.Go(func() { k.watchTemplates(ctx) })
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-k.opts.Supply.Changes():
				ring(k.bell)
				ring(k.changes)
			}
		}
	})
	k.report(ctx)
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// observe takes in the ledger as the API server has it; nil: it is gone. What the
// supply keeps stays as it is then: the ledger is made again, empty, and the
// controller says what is to be kept.
func (k *Keeper) observe(l *v1alpha1.NodeLedger) {
	k.mu.Lock()
	k.current = l
	before := k.applied
	k.mu.Unlock()
	defer ring(k.bell)
	if l == nil || l.UID == before.uid && l.Generation == before.generation {
		return
	}
	if l.UID != before.uid && len(before.targets) > 0 && l.Generation == 1 && len(l.Spec.Targets) == 0 && len(l.Spec.Templates) == 0 {
		return // made again by this node, empty: the controller has not said anything yet
	}
	targets, faults := Targets(&l.Spec, before.targets, k.opts.Limits)
	for _, f := range faults {
		k.log.Warn("A pool cannot be kept as the ledger says", "pool", f.Namespace+"/"+f.Pool, "template", f.Template, "revision", f.Revision, "reason", f.Message)
	}
	k.opts.Supply.SetTargets(targets)
	k.mu.Lock()
	k.applied = applied{uid: l.UID, generation: l.Generation, targets: targets, faults: faults}
	k.mu.Unlock()
	k.log.Info("Took over targets", "generation", l.Generation, "pools", len(targets), "faults", len(faults))
	ring(k.changes)
}

// Targets are what the supply keeps.
func (k *Keeper) Targets() []warmpool.Target {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.applied.targets)
}

// Listed tells whether the API server has said what is to be kept: before, no targets
// means that they are not known.
func (k *Keeper) Listed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.listed
}

// Pools is part of provider.Pools.
func (k *Keeper) Pools() []provider.NodePool {
	targets := k.Targets()
	if len(targets) == 0 {
		return nil
	}
	ready := map[string]int{}
	for _, p := range k.opts.Supply.Status().Pools {
		ready[p.Pool] = p.Ready
	}
	pools := make([]provider.NodePool, 0, len(targets))
	for _, t := range targets {
		namespace, name, _ := strings.Cut(t.Pool, "/")
		key, fits := v1alpha1.WarmName(namespace, name)
		if !fits {
			key = ""
		}
		pools = append(pools, provider.NodePool{
			Key: key, Ready: ready[t.Pool], Desired: t.Desired, Reserved: t.Reclaim == warmpool.ReclaimNever, MacOS: t.Template.GuestOS == vm.GuestMacOS,
			Each: provider.Budget{MilliCPU: t.Active.MilliCPU, MemoryBytes: t.Active.MemoryBytes, DiskBytes: t.Active.DiskBytes},
		})
	}
	slices.SortFunc(pools, func(a, b provider.NodePool) int { return cmp.Compare(a.Key, b.Key) })
	return pools
}

// Changes is part of provider.Pools.
func (k *Keeper) Changes() <-chan struct{} { return k.changes }

// WithheldMacOSGuests is part of provider.Pools.
func (k *Keeper) WithheldMacOSGuests() int64 { return k.opts.Supply.Status().Account.Withheld.Slots }

// Template is part of provider.Templates.
func (k *Keeper) Template(namespace, name string) (provider.Template, error) {
	return k.templates.get(namespace, name)
}

// OnChange is part of provider.Templates.
func (k *Keeper) OnChange(f func(namespace, name string)) { k.templates.onChange(f) }

// The pace of reports, and of retries when the API server does not take one.
const (
	reportEvery                      = time.Second
	reportRetryFirst, reportRetryMax = time.Second, 30 * time.Second
	requestTimeout                   = 30 * time.Second
)
