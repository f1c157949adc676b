// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"sync"
	"time"

	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
)

// Run makes the node: it lists the API server's pods, takes up again what an earlier
// process left, and then runs pods until ctx ends. It returns nil when ctx ended: the
// pods' machines go on, and the next Run adopts them. It may be called once.
//
// started, when not nil, is called once the node is registered and ready.
func (p *Provider) Run(ctx context.Context, started func()) (err error) {
	caller := ctx
	ctx, cancel := context.WithCancelCause(vklog.WithLogger(ctx, slogLogger{p.log.With("component", "virtual-kubelet")}))
	var wg sync.WaitGroup
	defer func() {
		cancel(err)
		p.wg.Wait()
		wg.Wait()
		p.kube.stop()
	}()
	if err := p.kube.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	p.record()
	if err := p.kube.watchPods(p); err != nil {
		return err
	}
	if err := p.recover(ctx); err != nil {
		if ctx.Err() != nil {
			return causeOf(caller, ctx)
		}
		return err
	}
	p.env.recovery.settle()
	wg.Go(func() { p.hand(ctx) })
	wg.Go(func() { p.keepReconciling(ctx) })

	pods, err := p.kube.podController(p)
	if err != nil {
		return err
	}
	fail := func(what string, err error) {
		if ctx.Err() == nil {
			if err == nil {
				err = errStopped
			}
			cancel(fmt.Errorf("%s: %w", what, err))
		}
	}
	wg.Go(func() { fail("pod controller", pods.Run(ctx, podSyncWorkers)) })
	select {
	case <-pods.Ready():
	case <-ctx.Done():
		return causeOf(caller, ctx)
	}
	for _, w := range p.all() { // what was published before virtual-kubelet listened
		p.publish(w.published.Load())
	}

	ready := make(chan struct{})
	wg.Go(func() { fail("node controller", p.keepNode(ctx, ready)) })
	select {
	case <-ready:
	case <-ctx.Done():
		return causeOf(caller, ctx)
	}
	p.log.Info("Node is ready", "node", p.opts.NodeName)
	if started != nil {
		started()
	}
	<-ctx.Done()
	return causeOf(caller, ctx)
}

// causeOf is nil when the caller ended, else why ctx was ended from within.
func causeOf(caller, ctx context.Context) error {
	if caller.Err() != nil {
		return nil //nolint:nilerr // it is told to stop, which is no failure
	}
	return context.Cause(ctx)
}

// reported notes that the API has the pod's Running.
func (w *worker) reported() {
	now := time.Now()
	w.post(func(*state) {
		if !w.mark.reported && !w.mark.running.IsZero() {
			w.mark.reported = true
			w.mark.observe(PhaseRunningReported, now.Sub(w.mark.running))
			w.mark.observe(PhaseTotal, now.Sub(w.mark.began))
		}
	})
}
