// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// Cluster is what the reconciler needs of Kubernetes.
type Cluster interface {
	// View is the cluster as the caches have it.
	View(ctx context.Context) (*View, error)
	// LiveLedgers and LiveLedger ask the API server, past the caches. LiveLedger fails with a
	// NotFound error when there is none.
	LiveLedgers(ctx context.Context) ([]*v1alpha1.NodeLedger, error)
	LiveLedger(ctx context.Context, name string) (*v1alpha1.NodeLedger, error)
	// Update and UpdateStatus replace the version that the object names, and fail with a
	// Conflict when there is another. They update the object.
	Update(ctx context.Context, o client.Object) error
	UpdateStatus(ctx context.Context, o client.Object) error
	Create(ctx context.Context, o client.Object) error
	// Delete removes the version that the object names.
	Delete(ctx context.Context, o client.Object) error
	// Event tells people about an object. It does not block.
	Event(object runtime.Object, warning bool, reason, message string)
}

// Options of the controller. Zero values are the defaults.
type Options struct {
	// GracePeriod is how long a node may be not ready before its replicas move. Default 40s.
	GracePeriod time.Duration
	// ReturnPeriod is how long a node that came back has to get its replicas ready before
	// others stop holding its part. Default 2m.
	ReturnPeriod time.Duration
	// CrowdedPeriod is how long pods may hold the room of replicas before these move. Default 30s.
	CrowdedPeriod time.Duration
	// FillLimit is how many replicas a node is told to restore at a time. Default 32.
	FillLimit int
	// Logger; nil discards.
	Logger *slog.Logger
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

func (o Options) complete() Options {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&o.GracePeriod, 40 * time.Second}, {&o.ReturnPeriod, 2 * time.Minute}, {&o.CrowdedPeriod, 30 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if o.FillLimit == 0 {
		o.FillLimit = 32
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

const (
	// staleDelay is how soon a pass is tried again when caches lag or a write was refused.
	staleDelay = 100 * time.Millisecond
	// paceDelay is how soon nodes are given more when they were not given everything.
	paceDelay = time.Second
	// idleDelay is how often the clock alone makes a pass: periods end without an event.
	idleDelay = 5 * time.Second
)

// Reconciler keeps the ledgers and statuses. It is not safe for concurrent use: all
// pools share the nodes, so there is one pass at a time.
type Reconciler struct {
	cluster Cluster
	opts    Options
	metrics *Metrics
	memory  memory
	expect  *expectations
	// told is when the status of a pool or template was last written.
	told map[types.UID]time.Time
}

// NewReconciler makes a reconciler that knows nothing yet: it reads all ledgers from the
// API server before its first decision. metrics may be nil.
func NewReconciler(c Cluster, o Options, m *Metrics) *Reconciler {
	return &Reconciler{cluster: c, opts: o.complete(), metrics: m, expect: newExpectations(), told: map[types.UID]time.Time{}}
}

// Pass looks at everything once and writes what has to change. It returns when the next
// pass is due if nothing happens before. An error means that something could not be written: the
// rest was, and the next pass tries again.
func (r *Reconciler) Pass(ctx context.Context) (next time.Duration, err error) {
	began := r.opts.Now()
	if err := r.expect.confirm(ctx, r.cluster); err != nil {
		return 0, err
	}
	view, err := r.cluster.View(ctx)
	if err != nil {
		return 0, err
	}
	if r.expect.stale(view) {
		r.metrics.stale()
		return staleDelay, nil
	}
	f := r.observe(view, began)
	p := makePlan(f, r.opts.FillLimit)
	complete, err := r.writeLedgers(ctx, f, p)
	errs := []error{err}
	conflicts, err := r.writeClasses(ctx, f, view.Classes)
	errs = append(errs, err)
	due, err := r.writeStatuses(ctx, f, p, conflicts, began)
	errs = append(errs, err)
	r.metrics.observe(f, p, r.opts.Now().Sub(began))
	next = min(idleDelay, due)
	switch {
	case !complete:
		next = staleDelay
	case p.paced:
		next = min(next, paceDelay)
	}
	return next, errors.Join(errs...)
}
