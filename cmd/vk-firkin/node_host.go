// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// capacity is what the host has, and what of it pods may have.
func (n *node) capacity() (capacity, allocatable corev1.ResourceList, err error) {
	memory, err := hostMemory()
	if err != nil {
		return nil, nil, err
	}
	disk, _, err := hostDisk(n.StateDir)
	if err != nil {
		return nil, nil, err
	}
	cpu := int64(runtime.NumCPU()) * 1000
	macOSGuests := n.driver.Features().MacOSGuests
	return provider.MacOSGuests(provider.Capacity(cpu, memory, disk, n.MaxPods), macOSGuests),
		provider.MacOSGuests(provider.Capacity(cpu, memory-n.reservedMemory, max(0, disk-n.minFreeDisk), n.MaxPods), macOSGuests), nil
}

// hostDisk is the size of the disk that holds a path, and what of it is free.
func hostDisk(path string) (size, free int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, fmt.Errorf("measure the disk of %s: %w", path, err)
	}
	return int64(fs.Blocks * uint64(fs.Bsize)), int64(fs.Bavail * uint64(fs.Bsize)), nil
}

// healthy fails when the node cannot run pods: its driver does not know its machines, the
// guest kit is gone, or nothing can be written where machines, pods and images are kept.
func (n *node) healthy(ctx context.Context) error {
	if _, err := n.driver.List(ctx); err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	for _, file := range []string{n.kit.Kernel, n.kit.Initramfs, n.kit.Scratch} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("look for guest kit: %w", err)
		}
	}
	for _, dir := range []string{n.StateDir, n.CacheDir} {
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil { // EROFS where the kernel gave a broken disk up
			return fmt.Errorf("write to %s: %w", dir, err)
		}
	}
	return nil
}

// hostIdentity identifies the host, its hardware, and its last boot; empty is unknown.
type hostIdentity struct{ machine, system, boot string }

// kubernetesRelease is the release of Kubernetes whose kubelet this node behaves as: that
// of the control plane it is tested with (hack/controlplane). The control plane's must not be older
// by the version skew policy.
const kubernetesRelease = "v1.36.3"

// kubeletVersion is the version that the node shows as its kubelet's: one that compares
// as Kubernetes' own do, with ours as what it was built from.
func kubeletVersion(own string) string {
	build := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '-':
			return r
		}
		return '-'
	}, strings.TrimPrefix(own, "v"))
	return kubernetesRelease + "+firkin." + build
}

// primaryAddress is the address that this host uses towards the API server; where that is
// on this host itself, the one that it uses towards the world. Nothing is sent.
func primaryAddress(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	address, err := sourceAddress(net.JoinHostPort(u.Hostname(), port))
	if err != nil || !address.IsLoopback() {
		return address.String(), err
	}
	// Documentation addresses (RFC 5737, RFC 3849) take the default route.
	for _, world := range []string{"192.0.2.1:443", "[2001:db8::1]:443"} {
		if outward, err := sourceAddress(world); err == nil && outward.IsGlobalUnicast() {
			return outward.String(), nil
		}
	}
	return address.String(), nil
}

// sourceAddress is what this host would send from.
func sourceAddress(to string) (net.IP, error) {
	conn, err := net.Dial("udp", to) //nolint:noctx // connecting a datagram socket does not wait
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	address, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return nil, fmt.Errorf("unexpected address %v", conn.LocalAddr())
	}
	return address.IP, nil
}

// snapshotEvent is called by the snapshot store: operators hear of it by an event on
// the node.
func (n *node) snapshotEvent(e snapshot.Event) {
	if n.provider != nil { // while the store is being opened there is nobody to tell
		warning := e.Type == snapshot.EventBuildFailed || e.Type == snapshot.EventQuarantined
		n.provider.NodeEvent(warning, "Snapshot"+string(e.Type), snapshotMessage(e))
	}
	if e.Type == snapshot.EventBuilt && n.supply != nil {
		n.supply.SnapshotBuilt(e.Template, e.Key, e.Duration, e.Save)
	}
	if e.Type == snapshot.EventQuarantined {
		n.metrics.SnapshotQuarantined()
		if n.supply != nil {
			n.supply.SnapshotGone(e.Key)
		}
	}
	n.logger.Info("Snapshot event", "type", string(e.Type), "snapshot", e.Key, "shape", e.Shape.String(), "message", e.Message)
}

// shownOutput is how much of what a failed command wrote an event shows; the
// NodeLedger's status has more.
const shownOutput = 400

// snapshotMessage tells what a template's failing command wrote, with what happened.
func snapshotMessage(e snapshot.Event) string {
	var step *recipe.StepError
	if !errors.As(e.Err, &step) || step.Output == "" {
		return e.Message
	}
	output := step.Output
	if len(output) > shownOutput {
		output = "..." + strings.ToValidUTF8(output[len(output)-shownOutput:], "")
	}
	return e.Message + ": " + output
}

// serveMetrics serves metrics in plain HTTP on loopback until ctx ends.
func (n *node) serveMetrics(ctx context.Context) error {
	if n.MetricsAddress == "" {
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", n.MetricsAddress)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics.Registry(), promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err = server.Serve(listener)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}
