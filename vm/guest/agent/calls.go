// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"
)

// calls are the calls of one kind that last as long as their callers like: they are
// counted, and end with the server.
type calls struct {
	kind   string
	most   int
	ctx    context.Context //nolint:containedctx // the life of the server, which the calls end with
	cancel context.CancelFunc

	mu   sync.Mutex
	n    int // guarded by mu, like all below
	shut bool
	work sync.WaitGroup // the calls, and what still reads from their callers
}

func newCalls(kind string, most int) *calls {
	c := &calls{kind: kind, most: most}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// begin admits a call. Its context ends with the server, and end says that it is over:
// until then it may start goroutines in work.
func (c *calls) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.shut:
		return nil, nil, connect.NewError(connect.CodeAborted, errors.New("the agent is ending"))
	case c.n >= c.most:
		return nil, nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine has %d %s", c.n, c.kind))
	}
	c.n++
	c.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		c.mu.Lock()
		c.n--
		c.mu.Unlock()
		c.work.Done()
	}, nil
}

// close ends all calls and waits for them.
func (c *calls) close() {
	c.mu.Lock()
	c.shut = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
}
