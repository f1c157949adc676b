// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

const (
	// maxAPIConnections bounds the connections of one pod to the API server. Further ones wait in
	// the machine.
	maxAPIConnections = 64
	// apiConnectionRate is how many a second one pod may make for long, after as many at once as it
	// may have: the API server sees them all come from this node.
	apiConnectionRate = 10
	// apiDialTimeout is how long the API server, or a machine, may take to answer.
	apiDialTimeout              = 10 * time.Second
	apiRetryFirst, apiRetryMax  = 100 * time.Millisecond, 5 * time.Second
	apiServiceName, apiPortName = "kubernetes", "https"
)

// usesAPI tells whether a pod is given a token for the API server: one that is not, is not led to
// it either.
func usesAPI(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil })
	})
}

// apiAddress is where a container's variables say that the API server is; invalid when
// that is no address of IPv4, the one family of a machine's network.
func apiAddress(services []*corev1.Service) netip.AddrPort {
	i := slices.IndexFunc(services, func(s *corev1.Service) bool {
		return s.Namespace == corev1.NamespaceDefault && s.Name == apiServiceName
	})
	if i < 0 {
		return netip.AddrPort{}
	}
	spec := services[i].Spec
	port := slices.IndexFunc(spec.Ports, func(p corev1.ServicePort) bool { return p.Name == apiPortName })
	addr, err := netip.ParseAddr(spec.ClusterIP)
	if err != nil || !addr.Is4() || port < 0 && len(spec.Ports) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(spec.Ports[max(port, 0)].Port))
}

// apiListener waits for one connection, see guest.PortListener.
type apiListener interface {
	Accept(ctx context.Context) (net.Conn, error)
	Close() error
}

// apiForwarder has a pod's machine answer for the address of the API server's Service, which exists inside of
// clusters only, and carries what comes there to the API server as this node reaches it: also one on the host's
// loopback. What is carried is the pod's own TLS; nothing of the node's identity is added.
type apiForwarder struct {
	address func() (netip.AddrPort, error)
	listen  func(ctx context.Context, address netip.AddrPort) (apiListener, error)
	dial    func(ctx context.Context) (net.Conn, error)
	log     *slog.Logger

	ctx  context.Context //nolint:containedctx // the life of all connections, ended by close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	serving bool // guarded by mu
	shut    bool // guarded by mu
}

// newAPIForwarder makes one that listens nowhere yet; nil when there is nothing to forward.
func newAPIForwarder(env *environment, pod *corev1.Pod, h *machineHold, log *slog.Logger) *apiForwarder {
	if env.apiServer == nil || !usesAPI(pod) {
		return nil
	}
	f := &apiForwarder{dial: env.apiServer, listen: h.listenAddress, log: log, address: func() (netip.AddrPort, error) {
		services, err := env.variables.services()
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("list services: %w", err)
		}
		return apiAddress(services), nil
	}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

// open returns when the machine answers for the address, so that the first connection of its first container
// finds it. A machine that cannot is left as it is. It may be called again.
func (f *apiForwarder) open(ctx context.Context) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.serving || f.shut {
		return nil
	}
	address, err := f.address()
	if err != nil {
		return err
	}
	if !address.IsValid() {
		f.log.Debug("The API server has no Service with an address of IPv4: the pod is not led to it")
		return nil
	}
	first, err := f.listen(ctx, address)
	switch {
	case errors.Is(err, vm.ErrNotSupported):
		f.log.Info("Pod cannot reach the API server's Service", "address", address.String(), "err", err)
		return nil
	case err != nil:
		return fmt.Errorf("lead the pod to the API server: %w", err)
	}
	f.serving = true
	f.wg.Go(func() { f.serve(first, address) })
	return nil
}

// close ends everything and waits for it.
func (f *apiForwarder) close() {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.shut = true
	f.mu.Unlock()
	f.stop()
	f.wg.Wait()
}

// serve accepts one connection after the other until close.
func (f *apiForwarder) serve(l apiListener, address netip.AddrPort) {
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxAPIConnections)
	// Connections of programs may be short, so that their number is all that tells a flood of a guest.
	turns := flowcontrol.NewTokenBucketRateLimiter(apiConnectionRate, maxAPIConnections)
	failures := 0
	for {
		if failures > 0 && !sleep(f.ctx, retryDelay(failures, apiRetryFirst, apiRetryMax)) {
			return
		}
		if l == nil {
			var err error
			if l, err = f.listen(f.ctx, address); err != nil {
				l = nil
				failures++ // the machine's connection was lost: another one is made with the next call
				f.log.Debug("Machine does not answer for the API server", "err", err)
				continue
			}
		}
		select {
		case slots <- struct{}{}:
		case <-f.ctx.Done():
			_ = l.Close()
			return
		}
		if turns.Wait(f.ctx) != nil {
			_ = l.Close()
			return
		}
		conn, err := l.Accept(f.ctx)
		l = nil
		if err != nil {
			<-slots
			failures++
			f.log.Debug("Connection to the API server could not be accepted", "err", err)
			continue
		}
		failures = 0
		conns.Go(func() {
			defer func() { <-slots }()
			f.carry(conn)
		})
	}
}

// carry carries one connection.
func (f *apiForwarder) carry(inside net.Conn) {
	defer inside.Close()
	ctx, cancel := context.WithTimeout(f.ctx, apiDialTimeout)
	outside, err := f.dial(ctx)
	cancel()
	if err != nil {
		f.log.Debug("API server does not answer a pod", "err", err)
		return
	}
	defer outside.Close()
	splice(f.ctx, inside, outside)
}

// listenAddress has the machine that is held answer for an address.
func (h *machineHold) listenAddress(ctx context.Context, address netip.AddrPort) (apiListener, error) {
	ctx, cancel := context.WithTimeout(ctx, apiDialTimeout)
	defer cancel()
	g, err := h.lease.Guest(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the machine's agent: %w", err)
	}
	l, err := guest.ListenAddress(ctx, g.Agent, address)
	if err != nil {
		return nil, err // not a nil pointer in the interface
	}
	return l, nil
}

// keepAPI ends the way to the API server with the hold. That of a machine that an earlier process prepared is opened
// first; otherwise setUp opens it.
func (w *worker) keepAPI(h *machineHold, prepared bool) {
	if h.api == nil {
		return
	}
	defer h.api.close()
	for failures := 1; prepared; failures++ {
		err := h.api.open(h.ctx)
		if err == nil {
			break
		}
		w.log.Debug("Adopted pod is not led to the API server yet", "err", err)
		if !sleep(h.ctx, retryDelay(failures, apiRetryFirst, apiRetryMax)) {
			return
		}
	}
	<-h.ctx.Done()
}
