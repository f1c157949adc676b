// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/garbage"
	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/network"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

func newNodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run this host as a node of a Kubernetes cluster",
		Long: `Runs this host as a node of a Kubernetes cluster, until it is told to stop.

The pods' machines go on when this process ends, however it ends; the next one takes
them up again. With --drain-on-shutdown all pods are ended first when it is told to stop;
told a second time, it stops at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := o.complete()
			if err != nil {
				return err
			}
			return runNode(cmd.Context(), settings)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// node is everything that a running node is made of, in the order of its making.
type node struct {
	*nodeSettings
	config    *rest.Config
	authority []byte // the cluster's
	// keepers renew certificates until they are told to stop.
	keepers      []func(context.Context) error
	certificates []prometheus.Collector
	client       kubernetes.Interface
	ip           string
	kit          vm.Kit
	kernel       string // the guests' kernel
	driver       vm.Driver
	ladder       []vm.Shape
	snapshots    *snapshot.Store
	supply       *warmpool.Supply
	ledger       *nodeledger.Keeper
	images       *image.Store
	pinned       *nodeImages
	logs         *podlog.Store
	metrics      *metrics.Metrics
	provider     *provider.Provider
	garbage      *garbage.Collector
	relief       *pressure.Manager
	refusals     status.Refusals
	handover     handover
	closers      []func() error
}

// runNode makes the node and runs it until ctx ends.
func runNode(ctx context.Context, s *nodeSettings) (err error) {
	n := &node{nodeSettings: s}
	defer func() {
		for i := len(n.closers) - 1; i >= 0; i-- {
			err = errors.Join(err, n.closers[i]())
		}
	}()
	if err := n.openLog(); err != nil {
		return err
	}
	klog.SetSlogLogger(s.logger.With("component", "kubernetes")) // client-go and apiserver log through klog
	n.warnWeakened(s.logger)
	for _, step := range []struct {
		name string
		make func(context.Context) error
	}{
		{"directories", n.makeDirectories},
		{"cluster", n.makeClient},
		{"machines", n.makeDriver},
		{"images", n.makeImages},
		{"supply", n.makeSupply},
		{"pools", n.makeLedger},
		{"relief", n.makeRelief},
		{"pods", n.makeProvider},
		{"collection", n.makeGarbage},
	} {
		if err := step.make(ctx); err != nil {
			return fmt.Errorf("set up %s: %w", step.name, err)
		}
	}
	return n.run(ctx)
}

// closeTimeout bounds each part of a shutdown; nothing in it waits for a guest.
const closeTimeout = 20 * time.Second

func (n *node) onClose(close func() error) { n.closers = append(n.closers, close) }

// makeDirectories makes the roots, readable by nobody else: snapshots hold the memory
// of machines, records hold what pods are. The state is this process's alone from then on.
func (n *node) makeDirectories(context.Context) error {
	for flag, dir := range map[string]string{"--state-dir": n.StateDir, "--cache-dir": n.CacheDir} {
		if err := makePrivate(dir); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	return n.lock()
}

// makeClient finds the cluster, as whom this node is known there, and the node's address.
func (n *node) makeClient(ctx context.Context) error {
	config, err := n.clusterConfig(ctx)
	if err != nil {
		return err
	}
	// The kubelet's defaults are 50 and 100; each pod start needs about ten requests.
	config.QPS, config.Burst = 50, 100
	config.UserAgent = rest.DefaultKubernetesUserAgent() + " vk-firkin/" + version
	n.config = config
	if n.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if n.ip = n.NodeIP; n.ip == "" {
		if n.ip, err = primaryAddress(config.Host); err != nil {
			return fmt.Errorf("find this host's primary address (or give --node-ip): %w", err)
		}
	}
	if n.KubeletAddress == "" {
		n.KubeletAddress, _, _ = strings.Cut(n.ip, ",")
	}
	return nil
}

// makeSupply opens the snapshots and the ledger over them.
func (n *node) makeSupply(ctx context.Context) error {
	memory, err := hostMemory()
	if err != nil {
		return err
	}
	available := memory - n.reservedMemory
	if n.ladder = n.nodeSettings.ladder; len(n.ladder) == 0 {
		n.ladder = warmpool.DefaultLadder(runtime.NumCPU(), available)
	}
	n.ladder = warmpool.SortLadder(n.ladder)
	if len(n.ladder) == 0 || n.ladder[0].MemoryBytes > available {
		return fmt.Errorf("this host has %d MiB for machines, less than the smallest shape: lower --reserved-memory or give smaller --shapes", available>>20)
	}
	if n.MaxPods == 0 {
		// 110 is the kubelet's own default.
		n.MaxPods = int(min(available/n.ladder[0].MemoryBytes, 110))
	}
	disk, _, err := hostDisk(n.StateDir)
	if err != nil {
		return err
	}
	floor := n.minFreeDisk
	if floor == 0 {
		floor = -1 // the store's own zero is its default
	}
	if n.snapshots, err = snapshot.Open(ctx, filepath.Join(n.StateDir, "snapshots"), snapshot.Options{
		Driver: n.driver, Logger: n.log("snapshot"), MinFreeBytes: floor,
		// More than one: a template whose set-up hangs until its time-out must not keep the
		// others waiting.
		Builds:  max(2, runtime.NumCPU()),
		Network: &agentv1.Network{Address: network.Address, Gateway: network.Gateway, Nameservers: []string{network.Nameserver}}, OnEvent: n.snapshotEvent,
	}); err != nil {
		return err
	}
	n.onClose(n.snapshots.Close)
	return n.openSupply(capacityOf(available, disk, n.driver.Features().MacOSGuests))
}

// makeImages opens the images, which templates and pods share.
func (n *node) makeImages(context.Context) (err error) {
	n.metrics = metrics.New(metrics.Sources{
		Pods:   func() []*corev1.Pod { return n.provider.Pods() },
		Supply: func() warmpool.Status { return n.supply.Status() },
	})
	n.images, err = image.Open(filepath.Join(n.CacheDir, "images"), image.Options{
		SlotBytes: n.driver.Features().SlotBytes, Arch: n.driver.Features().Arch,
		InsecureRegistries: n.InsecureRegistries, MinFreeBytes: n.minFreeDisk, Logger: n.log("image"),
	})
	if err != nil {
		return err
	}
	n.onClose(n.images.Close)
	n.pinned = newNodeImages(n.images, n.metrics)
	return nil
}

func (n *node) makeProvider(ctx context.Context) (err error) {
	n.logs = podlog.New(filepath.Join(n.StateDir, "pods"), podlog.Options{
		Logger:      n.log("podlog"),
		FirstOutput: func(c provider.ContainerRef, at time.Time) { n.provider.FirstOutput(c, at) },
	})
	capacity, allocatable, err := n.capacity()
	if err != nil {
		return err
	}
	identity := identify(ctx)
	apiServer, err := apiServerDialer(n.config, http.ProxyFromEnvironment)
	if err != nil { // everything else works
		n.log("node").Warn("Pods cannot reach the API server by its Service", "err", err)
	}
	n.provider, err = provider.New(provider.Options{
		Client: n.client, NodeName: n.NodeName, NodeIP: n.ip, StateDir: n.StateDir, Began: began,
		Supply: &nodeMachines{supply: n.supply, metrics: n.metrics, ladder: n.ladder, slots: n.driver.Features().ImageSlots},
		Images: n.pinned, Logs: n.logs, Observer: n.metrics, Templates: n.ledger, Pools: n.ledger, Refused: n.refused,
		Node: provider.NodeOptions{
			Arch: n.driver.Features().Arch, HostOS: runtime.GOOS, Driver: n.driver.Name(),
			Capacity: capacity, Allocatable: allocatable, NoTaint: n.NoTaint, KubeletPort: int32(n.KubeletPort),
			KubeletVersion: kubeletVersion(version), Version: version, KernelVersion: n.kernel, OSImage: "vk-firkin guest kit " + n.kit.Digest,
			MachineID: identity.machine, SystemUUID: identity.system, BootID: identity.boot, Labels: n.NodeLabels,
			Measure: n.shortage, PressureTransition: n.PressureTransition, Healthy: n.healthy, Examine: n.examination(), Images: n.pinned.shown,
		},
		VolumeRefresh: n.VolumeRefresh, ReconcileEvery: n.ReconcileEvery, StuckTimeout: n.StuckTimeout, HostPaths: n.HostPaths,
		DNS:            provider.DNS{Machine: []string{network.Nameserver}, Cluster: n.ClusterDNS, Domain: n.ClusterDomain},
		MachineAddress: strings.Split(network.Address, "/")[0], APIServer: apiServer,
		Logger: n.log("provider"),
	})
	return err
}

// run serves until ctx ends, or a part fails.
func (n *node) run(ctx context.Context) error {
	certificates, err := n.servingCertificates()
	if err != nil {
		return err
	}
	if err := n.showCertificates(); err != nil {
		return err
	}
	access, err := kubeletapi.NewDelegated(n.NodeName, n.client, certificates)
	if err != nil {
		return err
	}
	measured, err := n.makeStats()
	if err != nil {
		return err
	}
	defer measured.Close()
	server, err := kubeletapi.New(kubeletapi.Options{
		Containers: n.provider, Logs: n.logs, Access: access, Certificates: certificates,
		Metrics: n.metrics.Registry(), Stats: measured.Summary, Healthy: n.healthy, Observe: n.metrics.ObserveSample, Logger: n.log("kubeletapi"),
	})
	if err != nil {
		return err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(n.KubeletAddress, strconv.Itoa(n.KubeletPort)))
	if err != nil {
		return fmt.Errorf("serve the kubelet API: %w", err)
	}
	told := ctx
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(running)
	group.Go(func() error {
		defer stop()
		select {
		case <-told.Done():
			n.drain(ctx)
		case <-ctx.Done():
		}
		return nil
	})
	group.Go(func() error { return server.Serve(ctx, listener) })
	for _, keep := range n.keepers {
		group.Go(func() error { return keep(ctx) })
	}
	group.Go(func() error { n.tellIdentity(ctx); return nil })
	group.Go(func() error { return n.serveMetrics(ctx) })
	group.Go(func() error { n.prepareSnapshots(ctx); return nil })
	group.Go(func() error { n.collectGarbage(ctx); return nil })
	group.Go(func() error { n.scrubSnapshots(ctx); return nil })
	group.Go(func() error { n.serveControl(ctx); return nil })
	group.Go(func() error { n.relief.Run(ctx); return nil })
	group.Go(func() error { n.keepPools(ctx); return nil })
	group.Go(func() error { n.watchQuarantine(ctx); return nil })
	group.Go(func() error { n.ledger.Run(ctx); return nil })
	group.Go(func() error {
		// When the pods' part ends, all of the node ends.
		if err := n.provider.Run(ctx, nil); err != nil {
			return err
		}
		return errStopped
	})
	if err := group.Wait(); !errors.Is(err, errStopped) {
		return err
	}
	n.logger.Info("Stopped; what machines are left go on")
	return nil
}

var errStopped = errors.New("stopped")

// drain ends all pods when that is asked for, until it is told to stop a second time. A node that another
// one takes the place of leaves them to that.
func (n *node) drain(ctx context.Context) {
	if !n.DrainOnShutdown {
		return
	}
	if n.handover.expected() {
		n.logger.Info("Another node takes the place of this one: pods go on")
		return
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	n.provider.Shutdown(ctx, n.ShutdownGrace, n.ShutdownCritical)
}

// prepareSnapshots builds the base snapshots that the first pods will want, so that
// they are restored instead of booted. A failure is tried again by the first pod.
func (n *node) prepareSnapshots(ctx context.Context) {
	shapes := n.prepare
	if len(shapes) == 0 && !n.prepareNone {
		shapes = n.ladder[:1]
	}
	for _, shape := range shapes {
		began := time.Now()
		if err := n.supply.Prepare(ctx, []vm.Shape{shape}); err != nil {
			if ctx.Err() == nil {
				n.logger.Error("Cannot prepare base snapshot", "shape", shape.String(), "error", err)
			}
			continue
		}
		n.logger.Info("Base snapshot is ready", "shape", shape.String(), "took", time.Since(began).Round(time.Millisecond))
	}
}

// openLog makes the node log to its file, when it has one. What is closed later logs to it, too.
func (n *node) openLog() error {
	if n.LogFile == "" {
		return nil
	}
	if err := trimStandardError(os.Stderr); err != nil {
		return fmt.Errorf("empty the file behind standard error: %w", err)
	}
	file, err := openRotating(n.LogFile, n.logMaxBytes, n.LogFiles)
	if err != nil {
		return err
	}
	n.onClose(file.Close)
	n.logger, err = n.logOptions.logger(file)
	return err
}

func (n *node) log(component string) *slog.Logger { return n.logger.With("component", component) }
