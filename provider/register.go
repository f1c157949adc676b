// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// How soon registering is tried again: as often as the informers of client-go list again.
const registerRetryFirst, registerRetryMax = time.Second, 30 * time.Second

// keepNode registers the node, closes ready, and keeps the node's status until ctx ends. A server
// that has gone since the pods were listed is waited for: virtual-kubelet's controller gives up at
// the first request that fails before it is ready, and pods are taken up by then.
func (p *Provider) keepNode(ctx context.Context, ready chan<- struct{}) error {
	for failures := 1; ; failures++ {
		again, err := p.tryNode(ctx, ready)
		if !again || ctx.Err() != nil {
			return err
		}
		p.log.Warn("The node could not be registered, trying again", "node", p.opts.NodeName, "err", err)
		if !sleep(ctx, retryDelay(failures, registerRetryFirst, registerRetryMax)) {
			return nil
		}
	}
}

// tryNode is keepNode with one controller. again: the server may answer otherwise later.
func (p *Provider) tryNode(ctx context.Context, ready chan<- struct{}) (again bool, err error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the controller leaves a goroutine behind when it gives up
	nodes, keeper, err := p.nodeController(ctx)
	if err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	wg.Go(func() { ended <- nodes.Run(ctx) })
	select {
	case err := <-ended:
		return !refusedForGood(err), err
	case <-nodes.Ready():
	}
	close(ready)
	wg.Go(func() { keeper.run(ctx) })
	return false, <-ended
}

// refusedForGood tells whether a server that answered will say the same again: nobody should have
// to read a log to find that the identity may not register this node.
func refusedForGood(err error) bool {
	return err == nil || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}
