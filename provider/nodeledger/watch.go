// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// watchLedger follows the node's ledger until ctx ends.
func (k *Keeper) watchLedger(ctx context.Context) {
	observe := func(obj any) {
		if l, ok := obj.(*v1alpha1.NodeLedger); ok && l.Name == k.opts.NodeName {
			k.observe(l)
		}
	}
	k.watch(ctx, "nodeledgers", k.opts.API.Ledger(k.opts.NodeName), &v1alpha1.NodeLedger{}, cache.ResourceEventHandlerFuncs{
		AddFunc:    observe,
		UpdateFunc: func(_, obj any) { observe(obj) },
		DeleteFunc: func(any) { k.observe(nil) },
	}, func() {
		k.mu.Lock()
		k.listed = true
		k.mu.Unlock()
		ring(k.bell)
	})
}

// watchTemplates follows the templates until ctx ends.
func (k *Keeper) watchTemplates(ctx context.Context) {
	put := func(obj any) {
		if t, ok := obj.(*v1alpha1.SnapshotTemplate); ok {
			k.templates.put(t)
		}
	}
	k.watch(ctx, "snapshottemplates", k.opts.API.Templates(), &v1alpha1.SnapshotTemplate{}, cache.ResourceEventHandlerFuncs{
		AddFunc:    put,
		UpdateFunc: func(_, obj any) { put(obj) },
		DeleteFunc: func(obj any) {
			if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if t, ok := obj.(*v1alpha1.SnapshotTemplate); ok {
				k.templates.remove(t.Namespace, t.Name)
			}
		},
	}, k.templates.synced)
}

// watch runs an informer until ctx ends. listed is called when the first list is in,
// which may be never: a cluster need not have the CRDs. client-go tries again, each
// time after a longer pause, up to half a minute.
func (k *Keeper) watch(ctx context.Context, what string, lw cache.ListerWatcher, of runtime.Object, handler cache.ResourceEventHandler, listed func()) {
	informer := cache.NewSharedIndexInformer(lw, of, 0, cache.Indexers{})
	var f watchFailures
	err := errors.Join(
		informer.SetTransform(slim),
		informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) { k.watchFailed(ctx, what, &f, err) }),
	)
	registration, aerr := informer.AddEventHandler(handler)
	if err = errors.Join(err, aerr); err != nil { // only of an informer that runs already
		k.log.Error("Cannot watch", "resource", what, "err", err)
		return
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		informer.RunWithContext(ctx)
	}()
	if cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		k.log.Info("Listed", "resource", what)
		listed()
	}
	<-stopped
}

const (
	// refusedFor is how long an API server must have refused a watch until the node believes
	// it: one that has just started refuses what it allows, until it has read its roles.
	refusedFor = 30 * time.Second
	// refusedApart is what may lie between two refusals of one series: client-go pauses for
	// 30 s at most, and a minute when it adds a jitter.
	refusedApart = 90 * time.Second
)

// watchFailures is what was said of one watch.
type watchFailures struct {
	said string
	// Of the series of refusals that goes on, if one does.
	refusedFirst, refusedLast time.Time
}

// refused counts a refusal, and tells whether it is to be believed. Pure but for f.
func (f *watchFailures) refused(now time.Time) bool {
	if now.Sub(f.refusedLast) > refusedApart {
		f.refusedFirst = now
	}
	f.refusedLast = now
	return now.Sub(f.refusedFirst) >= refusedFor
}

// watchFailed says once what is wrong.
func (k *Keeper) watchFailed(ctx context.Context, what string, f *watchFailures, err error) {
	reason := cmp.Or(string(apierrors.ReasonForError(err)), "Unknown")
	switch {
	case ctx.Err() != nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return // watches end, and are begun anew
	case apierrors.IsForbidden(err) && !f.refused(time.Now()):
		k.log.Debug("Watch was refused, which a server that has just started may do", "resource", what, "err", err)
		return
	case f.said == reason:
		k.log.Debug("Still cannot watch", "resource", what, "err", err)
	case apierrors.IsNotFound(err):
		k.log.Warn("The cluster does not have vk-firkin's CRDs: this node has no warm pools and no templates until they are installed", "resource", what)
	case apierrors.IsForbidden(err):
		k.log.Warn("This node may not watch: bind it to the role that the chart installs", "resource", what, "err", err)
	default:
		k.log.Warn("Cannot watch, trying again; what is known stays in force", "resource", what, "err", err)
	}
	f.said = reason
}

// slim drops what the node does not read.
func slim(obj any) (any, error) {
	switch o := obj.(type) {
	case *v1alpha1.NodeLedger:
		o.ManagedFields = nil
	case *v1alpha1.SnapshotTemplate:
		o.ManagedFields, o.Annotations, o.Status = nil, nil, v1alpha1.SnapshotTemplateStatus{}
	}
	return obj, nil
}
