// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// expectations remember the last version of each ledger that is known to exist, so that
// nothing is decided from a cache that has not seen it.
type expectations struct {
	known map[string]version
	// uncertain are ledgers that may have changed without an answer: they are read from the
	// API server before the next decision. all means every one, as at the start.
	uncertain map[string]bool
	all       bool
}

type version struct {
	uid        types.UID
	generation int64
}

func newExpectations() *expectations {
	return &expectations{known: map[string]version{}, uncertain: map[string]bool{}, all: true}
}

func (e *expectations) saw(l *v1alpha1.NodeLedger) {
	e.known[l.Name] = version{l.UID, l.Generation}
	delete(e.uncertain, l.Name)
}

// confirm reads what is uncertain.
func (e *expectations) confirm(ctx context.Context, c Cluster) error {
	if e.all {
		ledgers, err := c.LiveLedgers(ctx)
		if err != nil {
			return fmt.Errorf("list NodeLedgers: %w", err)
		}
		clear(e.known)
		clear(e.uncertain)
		for _, l := range ledgers {
			e.saw(l)
		}
		e.all = false
	}
	for name := range e.uncertain {
		l, err := c.LiveLedger(ctx, name)
		switch {
		case apierrors.IsNotFound(err):
			delete(e.known, name)
			delete(e.uncertain, name)
		case err != nil:
			return fmt.Errorf("get NodeLedger %s: %w", name, err)
		default:
			e.saw(l)
		}
	}
	return nil
}

// stale tells whether the view is older than what is known. A ledger that the view has
// not is looked up next time: it was deleted, or is not in the cache yet.
func (e *expectations) stale(v *View) bool {
	stale := false
	seen := make(map[string]bool, len(v.Ledgers))
	for _, l := range v.Ledgers {
		seen[l.Name] = true
		known, ok := e.known[l.Name]
		switch {
		case !ok:
		case known.uid != l.UID:
			e.uncertain[l.Name] = true // made anew; which of the two is newer, the server knows
			stale = true
		case l.Generation < known.generation:
			stale = true
		}
	}
	for name := range e.known {
		if !seen[name] {
			e.uncertain[name] = true
			stale = true
		}
	}
	return stale
}

// writeLedgers brings the ledgers to the plan, decreases first, and never lets a pool's
// targets on reachable nodes add up to more than its replicas by an increase. It tells
// whether everything was written; what was not is planned anew.
func (r *Reconciler) writeLedgers(ctx context.Context, f *fleet, p *plan) (complete bool, err error) {
	replicas, sums := map[Key]int{}, map[Key]int{}
	for _, pool := range f.pools {
		replicas[pool.Key] = pool.Replicas
	}
	var changed []*member
	rise := map[string]int{}
	for _, m := range f.nodes {
		if m.State != NodeUnreachable {
			for k, n := range m.Held {
				sums[k] += n
			}
		}
		if spec := p.specs[m.Name]; !sameSpec(&m.ledger.Spec, &spec) {
			changed = append(changed, m)
			for _, t := range spec.Targets {
				rise[m.Name] += max(0, int(t.Replicas)-m.Held[Key{t.Namespace, t.Pool}])
			}
		}
	}
	slices.SortFunc(changed, func(a, b *member) int {
		return cmp.Or(cmp.Compare(rise[a.Name], rise[b.Name]), cmp.Compare(a.Name, b.Name))
	})
	complete = true
	var errs []error
	for _, m := range changed {
		spec, whole := clipSpec(m, p.specs[m.Name], replicas, sums)
		complete = complete && whole
		if sameSpec(&m.ledger.Spec, &spec) {
			continue
		}
		ledger := m.ledger.DeepCopy()
		ledger.Spec = spec
		err := r.cluster.Update(ctx, ledger)
		r.metrics.write("NodeLedger", err)
		if err == nil {
			r.expect.saw(ledger)
			r.account(m, spec, sums, false)
			m.take(ledger)
			continue
		}
		complete = false
		r.expect.uncertain[m.Name] = true
		switch {
		case apierrors.IsConflict(err):
			continue // somebody wrote in between: the next pass sees it
		case apierrors.IsNotFound(err):
			continue // its node is gone
		case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsRequestEntityTooLargeError(err):
		default:
			r.account(m, spec, sums, true) // it may have been written
		}
		errs = append(errs, fmt.Errorf("write targets of node %s: %w", m.Name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return complete, errors.Join(errs...)
}

// sameSpec tells whether two specs, in the order of sortSpec, say the same. A template's
// revision stands for all of it.
func sameSpec(a, b *v1alpha1.NodeLedgerSpec) bool {
	return slices.EqualFunc(a.Targets, b.Targets, func(x, y v1alpha1.PoolTarget) bool {
		sameAge := x.MaxAge == y.MaxAge || x.MaxAge != nil && y.MaxAge != nil && *x.MaxAge == *y.MaxAge
		x.MaxAge, y.MaxAge = nil, nil
		return sameAge && x == y
	}) && slices.EqualFunc(a.Templates, b.Templates, func(x, y v1alpha1.TemplateRevision) bool {
		return x.Namespace == y.Namespace && x.Name == y.Name && x.Revision == y.Revision
	})
}

// account adds what was written to the sums. Of a write that may have failed only
// the increases count.
func (r *Reconciler) account(m *member, spec v1alpha1.NodeLedgerSpec, sums map[Key]int, uncertain bool) {
	if m.State == NodeUnreachable {
		return
	}
	now := map[Key]int{}
	for _, t := range spec.Targets {
		now[Key{t.Namespace, t.Pool}] = int(t.Replicas)
	}
	for k, n := range now {
		if delta := n - m.Held[k]; delta > 0 || !uncertain {
			sums[k] += delta
		}
	}
	for k, n := range m.Held {
		if _, kept := now[k]; !kept && !uncertain {
			sums[k] -= n
		}
	}
}

// clipSpec cuts increases to what the sums leave of the replicas. whole tells that
// nothing was cut.
func clipSpec(m *member, spec v1alpha1.NodeLedgerSpec, replicas, sums map[Key]int) (clipped v1alpha1.NodeLedgerSpec, whole bool) {
	whole = true
	if m.State == NodeUnreachable {
		return spec, true
	}
	b := newSpecBuilder()
	for _, t := range spec.Targets {
		k := Key{t.Namespace, t.Pool}
		if rise := int(t.Replicas) - m.Held[k]; rise > 0 {
			if room := max(0, replicas[k]-sums[k]); rise > room {
				whole = false
				t.Replicas = int32(m.Held[k] + room)
			}
		}
		if t.Replicas == 0 {
			continue
		}
		i := slices.IndexFunc(spec.Templates, func(r v1alpha1.TemplateRevision) bool {
			return r.Namespace == t.Namespace && r.Name == t.Template && r.Revision == t.Revision
		})
		b.add(t, &spec.Templates[i].Spec, 0)
	}
	return b.spec(), whole
}
