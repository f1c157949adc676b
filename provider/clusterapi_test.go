// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/vm"
)

func TestUsesAPI(t *testing.T) {
	token := corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}
	config := corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{}}
	for name, tt := range map[string]struct {
		sources []corev1.VolumeProjection
		want    bool
	}{
		"no volume": {nil, false}, "a ConfigMap": {[]corev1.VolumeProjection{config}, false}, "a token among others": {[]corev1.VolumeProjection{config, token}, true},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "none"}}}}
		if tt.sources != nil {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: tt.sources}}})
		}
		if got := usesAPI(pod); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAPIAddress(t *testing.T) {
	service := func(namespace, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	https := corev1.ServicePort{Name: "https", Port: 443}
	for name, tt := range map[string]struct {
		services []*corev1.Service
		want     string
	}{
		"usual":          {[]*corev1.Service{service("a", "kubernetes", "10.0.0.1", https), service("default", "kubernetes", "10.96.0.1", https)}, "10.96.0.1:443"},
		"by its name":    {[]*corev1.Service{service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "other", Port: 1}, https)}, "10.96.0.1:443"},
		"without a name": {[]*corev1.Service{service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Port: 6443})}, "10.96.0.1:6443"},
		"no Service":     {[]*corev1.Service{service("default", "other", "10.96.0.2", https)}, "invalid AddrPort"},
		"headless":       {[]*corev1.Service{service("default", "kubernetes", corev1.ClusterIPNone, https)}, "invalid AddrPort"},
		"no ports":       {[]*corev1.Service{service("default", "kubernetes", "10.96.0.1")}, "invalid AddrPort"},
		"IPv6":           {[]*corev1.Service{service("default", "kubernetes", "2001:db8::1", https)}, "invalid AddrPort"},
	} {
		if got := apiAddress(tt.services).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// scriptedMachine answers for an address as its script says, one entry a listener.
type scriptedMachine struct {
	script chan func(context.Context) (net.Conn, error)
	asked  chan netip.AddrPort
	err    error      // of listening
	errs   chan error // of listening, once each
}

func (m *scriptedMachine) listen(ctx context.Context, address netip.AddrPort) (apiListener, error) {
	select {
	case m.asked <- address:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err := <-m.errs:
		return nil, err
	default:
		return m, m.err
	}
}

func (m *scriptedMachine) Accept(ctx context.Context) (net.Conn, error) {
	select {
	case next := <-m.script:
		return next(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *scriptedMachine) Close() error { return nil }

func newScripted(dial func(context.Context) (net.Conn, error)) (*scriptedMachine, *apiForwarder) {
	m := &scriptedMachine{script: make(chan func(context.Context) (net.Conn, error), 8), asked: make(chan netip.AddrPort, 16), errs: make(chan error, 1)}
	f := &apiForwarder{listen: m.listen, dial: dial, log: slog.New(slog.DiscardHandler), address: func() (netip.AddrPort, error) {
		return netip.MustParseAddrPort("10.96.0.1:443"), nil
	}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return m, f
}

// TestAPIForwarder: connections are carried, one that the API server does not answer ends alone, a machine that does not answer for a while is asked again, and close ends all.
func TestAPIForwarder(t *testing.T) {
	servers := make(chan net.Conn, 1)
	refuse := true
	m, f := newScripted(func(context.Context) (net.Conn, error) {
		if refuse {
			refuse = false
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		servers <- theirs
		return ours, nil
	})
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.open(t.Context()); err != nil { // as setUp does once more
		t.Fatal(err)
	}
	connection := func() net.Conn {
		ours, theirs := net.Pipe()
		m.script <- func(context.Context) (net.Conn, error) { return theirs, nil }
		return ours
	}
	refused := connection()
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a connection that the API server refuses: %v", err)
	}
	m.errs <- vm.ErrUnavailable
	m.script <- func(context.Context) (net.Conn, error) { return nil, vm.ErrUnavailable }
	pod := connection()
	server := <-servers
	if _, err := pod.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "hello" {
		t.Errorf("the API server reads %q: %v", got, err)
	}
	if got := <-m.asked; got.String() != "10.96.0.1:443" {
		t.Errorf("the machine is asked for %s", got)
	}
	f.close()
	if _, err := pod.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("after close the pod reads: %v", err)
	}
	f.mu.Lock()
	f.serving = false // as one that was closed before it was open
	f.mu.Unlock()
	asked := len(m.asked)
	if err := f.open(t.Context()); err != nil || len(m.asked) != asked {
		t.Errorf("open after close asks the machine: %v", err)
	}
}

// floodingMachine connects as often as it is let, and ends each connection at once, or never.
type floodingMachine struct{ ends bool }

func (m floodingMachine) Accept(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	if m.ends {
		_ = ours.Close()
	}
	return theirs, ctx.Err()
}

func (floodingMachine) Close() error { return nil }

// TestAPIForwarderFlood: a guest that makes connections without end has the node dial as often as it may, and no more.
func TestAPIForwarderFlood(t *testing.T) {
	const seconds = 60
	for name, tt := range map[string]struct {
		ends bool
		want int64
	}{
		"that end at once": {true, maxAPIConnections + seconds*apiConnectionRate},
		"that stay":        {false, maxAPIConnections},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dials atomic.Int64
				var f *apiForwarder
				_, f = newScripted(func(context.Context) (net.Conn, error) {
					if dials.Add(1) > 5000 { // without a bound time would stand still
						<-f.ctx.Done()
						return nil, f.ctx.Err()
					}
					ours, _ := net.Pipe()
					return ours, nil
				})
				f.listen = func(context.Context, netip.AddrPort) (apiListener, error) { return floodingMachine{tt.ends}, nil }
				if err := f.open(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(seconds * time.Second)
				if n := dials.Load(); n > tt.want || n < tt.want-1 {
					t.Errorf("%d connections in %d seconds, want %d", n, seconds, tt.want)
				}
				f.close()
			})
		})
	}
}

// TestAPIForwarderCannot: a machine that cannot is left alone, and any other error keeps the pod from starting without.
func TestAPIForwarderCannot(t *testing.T) {
	for _, tt := range []struct{ err, want error }{{vm.ErrNotSupported, nil}, {vm.ErrUnavailable, vm.ErrUnavailable}} {
		m, f := newScripted(nil)
		m.err = tt.err
		if err := f.open(t.Context()); !errors.Is(err, tt.want) {
			t.Errorf("a machine that says %v: %v", tt.err, err)
		}
		f.close()
	}
	m, f := newScripted(nil)
	f.address = func() (netip.AddrPort, error) { return netip.AddrPort{}, nil }
	if err := f.open(t.Context()); err != nil || len(m.asked) > 0 {
		t.Errorf("without a Service the machine is asked %d times: %v", len(m.asked), err)
	}
	f.close()
	var none *apiForwarder // a pod without a token
	if err := none.open(t.Context()); err != nil {
		t.Error(err)
	}
	none.close()
}
