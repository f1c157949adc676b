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

// healthy fails when the node cannot run pods: its driver does not know its machines.
func (n *node) healthy(ctx context.Context) error {
	if _, err := n.driver.List(ctx); err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	return nil
}

// lowMemory is what must be available on the host, or the node is under pressure: the
// kubelet's default eviction threshold.
const lowMemory = 100 << 20

// pressure measures what the host is short of.
func (n *node) pressure() (provider.Pressure, error) {
	var p provider.Pressure
	_, free, err := hostDisk(n.StateDir)
	if err != nil {
		return p, err
	}
	p.Disk = provider.Measured{Short: free < n.minFreeDisk, Message: fmt.Sprintf("%d MiB free where machines are kept, %d MiB must be", free>>20, n.minFreeDisk>>20)}
	available, err := hostMemoryAvailable()
	if err != nil {
		return p, err
	}
	p.Memory = provider.Measured{Short: available < lowMemory, Message: fmt.Sprintf("%d MiB of memory available", available>>20)}
	used, limit, err := hostProcesses()
	if err != nil {
		return p, err
	}
	// The kubelet has no default for this; a tenth of the processes left is little for
	// a host that starts one for each machine.
	p.PID = provider.Measured{Short: limit > 0 && used > limit-limit/10, Message: fmt.Sprintf("%d of %d processes", used, limit)}
	return p, nil
}

// primaryAddress is the address that this host uses towards the API server. Nothing
// is sent.
func primaryAddress(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	conn, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), port)) //nolint:noctx // connecting a datagram socket does not wait
	if err != nil {
		return "", err
	}
	defer conn.Close()
	address, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return "", fmt.Errorf("unexpected address %v", conn.LocalAddr())
	}
	return address.IP.String(), nil
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
