// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest"
)

const (
	// maxPortConnections bounds the connections through one port of the host. Further ones
	// wait in the listener's backlog.
	maxPortConnections = 512
	// portDialTimeout is how long a machine may take to answer a connection.
	portDialTimeout = 10 * time.Second
)

// hostPort is one port of the host that is forwarded into a pod's machine.
type hostPort struct {
	protocol corev1.Protocol
	// host is the address of the host; invalid stands for the node's own.
	host netip.Addr
	port int
	// container is the port in the machine.
	container int
}

func (p hostPort) String() string {
	text := strconv.Itoa(p.port) + "/" + string(p.protocol)
	if p.host.IsValid() {
		return p.host.String() + ":" + text
	}
	return text
}

// hostPorts are the ports of the host that a pod asks for: those of containers that run
// as long as the pod does, as the scheduler counts them.
func hostPorts(pod *corev1.Pod) []hostPort {
	var ports []hostPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			h := hostPort{protocol: p.Protocol, port: int(p.HostPort), container: int(p.ContainerPort)}
			if h.protocol == "" {
				h.protocol = corev1.ProtocolTCP
			}
			if addr, err := netip.ParseAddr(p.HostIP); err == nil {
				h.host = addr.Unmap()
			}
			ports = append(ports, h)
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return ports
}

// unsupportedPorts returns one sentence for each port of the host that cannot be
// forwarded. It is pure.
func unsupportedPorts(pod *corev1.Pod) []string {
	var faults []string
	look := func(kind string, list []corev1.Container) {
		for i := range list {
			for j, p := range list[i].Ports {
				if p.HostPort != 0 && p.Protocol == corev1.ProtocolSCTP {
					faults = append(faults, fmt.Sprintf("spec.%s[%d].ports[%d].hostPort: not supported with protocol SCTP, only with TCP and UDP", kind, i, j))
				}
			}
		}
	}
	look("initContainers", pod.Spec.InitContainers)
	look("containers", pod.Spec.Containers)
	return faults
}

// clashes tells whether two ports cannot be listened on side by side. No address, and
// 0.0.0.0, is every address, as the scheduler has it.
func (p hostPort) clashes(with hostPort) bool {
	if p.protocol != with.protocol || p.port != with.port {
		return false
	}
	every := func(a netip.Addr) bool { return !a.IsValid() || a == netip.IPv4Unspecified() }
	a, b := p.host, with.host
	return every(a) || every(b) || a == b ||
		a == netip.IPv6Unspecified() && b.Is6() || b == netip.IPv6Unspecified() && a.Is6()
}

// nodeAddresses reads Options.NodeIP: one address, or two of different families.
func nodeAddresses(nodeIP string) []string {
	if nodeIP == "" {
		return nil
	}
	return strings.Split(nodeIP, ",")
}

// hostPortError is a port of the host that cannot be listened on now.
type hostPortError struct {
	port hostPort
	err  error
}

func (e *hostPortError) Error() string {
	return fmt.Sprintf("listen on host port %s: %v", e.port, e.err)
}

func (e *hostPortError) Unwrap() error { return e.err }

// portForwarder listens on a pod's ports of the host and forwards what comes into its
// machine, as long as the machine is held.
type portForwarder struct {
	ports     []hostPort
	addresses []string // the node's
	// dial opens a connection to a port of the machine; ctx bounds the dialing only.
	dial func(ctx context.Context, port int, udp bool) (net.Conn, error)
	log  *slog.Logger

	ctx  context.Context //nolint:containedctx // the life of all connections, ended by close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu        sync.Mutex
	listening map[string]io.Closer // guarded by mu; by protocol, address and port
	deaf      bool                 // guarded by mu; nothing is listened on any more
}

// newPortForwarder makes one that listens on nothing yet; nil when there is nothing to forward.
func newPortForwarder(pod *corev1.Pod, nodeIP string, dial func(context.Context, int, bool) (net.Conn, error), log *slog.Logger) *portForwarder {
	ports := hostPorts(pod)
	if len(ports) == 0 {
		return nil
	}
	f := &portForwarder{ports: ports, addresses: nodeAddresses(nodeIP), dial: dial, log: log, listening: map[string]io.Closer{}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

// open listens on every port that is not listened on yet, and returns what could not be.
// It may be called again.
func (f *portForwarder) open(ctx context.Context) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, p := range f.ports {
		hosts := f.addresses
		if p.host.IsValid() {
			hosts = []string{p.host.String()}
		}
		for _, host := range hosts {
			if f.deaf {
				return errors.Join(append(errs, net.ErrClosed)...)
			}
			if err := f.listen(ctx, p, host); err != nil {
				errs = append(errs, &hostPortError{port: p, err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// listen begins to serve one address; f.mu is held.
func (f *portForwarder) listen(ctx context.Context, p hostPort, host string) error {
	// One family each: a wildcard of IPv6 would otherwise take IPv4's as well.
	network := strings.ToLower(string(p.protocol)) + "4"
	if strings.Contains(host, ":") {
		network = strings.ToLower(string(p.protocol)) + "6"
	}
	address := net.JoinHostPort(host, strconv.Itoa(p.port))
	key := network + "/" + address
	if f.listening[key] != nil {
		return nil
	}
	var config net.ListenConfig
	if p.protocol == corev1.ProtocolUDP {
		conn, err := config.ListenPacket(ctx, network, address)
		if err != nil {
			return errors.Unwrap(err) // without the address, which the port has
		}
		f.listening[key] = conn
		f.wg.Go(func() { f.serveUDP(conn, p) })
		return nil
	}
	l, err := config.Listen(ctx, network, address)
	if err != nil {
		return errors.Unwrap(err)
	}
	f.listening[key] = l
	f.wg.Go(func() { f.serveTCP(l, p) })
	return nil
}

// deafen stops to listen, at once: another pod may have the ports. Connections go on.
func (f *portForwarder) deafen() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = true
	for key, l := range f.listening {
		_ = l.Close()
		delete(f.listening, key)
	}
}

// close ends everything and waits for it.
func (f *portForwarder) close() {
	if f == nil {
		return
	}
	f.deafen()
	f.stop()
	f.wg.Wait()
}

// serveTCP accepts until the listener is closed.
func (f *portForwarder) serveTCP(l net.Listener, p hostPort) {
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxPortConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-f.ctx.Done():
			return
		}
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, perhaps
			<-slots
			f.log.Warn("Connection to a host port could not be accepted", "port", p.String(), "err", err)
			if !sleep(f.ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			f.forward(c, p)
		})
	}
}

// forward carries one connection.
func (f *portForwarder) forward(c net.Conn, p hostPort) {
	defer c.Close()
	inside, err := f.dialMachine(p)
	if err != nil {
		f.log.Debug("Connection to a host port was refused by the machine", "port", p.String(), "err", err)
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // reset, as a port that nobody listens on
		}
		return
	}
	defer inside.Close()
	splice(f.ctx, c, inside)
}

// splice carries what comes from each of two connections to the other, until both have ended or ctx has.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		_ = a.Close()
		_ = b.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { pipe(a, b) })
	both.Go(func() { pipe(b, a) })
	both.Wait()
}

// pipe copies until the source sends no more, and tells the other end so.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok {
		// Broken, or no way to say it: both directions end.
		_ = to.Close()
		_ = from.Close()
		return
	}
	_ = half.CloseWrite()
}

// dialMachine connects to the port in the machine.
func (f *portForwarder) dialMachine(p hostPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, portDialTimeout)
	defer cancel()
	return f.dial(ctx, p.container, p.protocol == corev1.ProtocolUDP)
}

// dialPort connects to a port in the machine that is held.
func (h *machineHold) dialPort(ctx context.Context, port int, udp bool) (net.Conn, error) {
	g, err := h.lease.Guest(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the machine's agent: %w", err)
	}
	return guest.DialPort(ctx, g.Agent, port, udp)
}

const portRetryFirst, portRetryMax = 100 * time.Millisecond, 30 * time.Second

// keepPorts ends the forwarding of ports with the hold. Those of a machine that an
// earlier process prepared are opened again first; otherwise setUp opens them before the
// first container starts.
func (w *worker) keepPorts(h *machineHold, pod *corev1.Pod, prepared bool) {
	if h.ports == nil {
		return
	}
	defer h.ports.close()
	for failures := 1; prepared; failures++ {
		err := h.ports.open(h.ctx)
		if err == nil {
			break
		}
		if h.ctx.Err() == nil && failures == portTries {
			// Its containers run: they are not ended for that.
			w.log.Warn("Host ports of an adopted pod cannot be opened", "err", err)
			w.env.events.pod(pod, true, eventHostPort, "Pod goes on without some of its host ports: "+err.Error())
		}
		if !sleep(h.ctx, retryDelay(failures, portRetryFirst, portRetryMax)) {
			return
		}
	}
	<-h.ctx.Done()
}

// portTries is how often ports are tried until it is told: the process before may need a
// moment to let them go.
const portTries = 4
