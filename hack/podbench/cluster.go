// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
)

// fleet is what the pods run on: a cluster that was there, or one of this process's own.
type fleet struct {
	kubeconfig string
	image      string
	node       *cluster.Node // nil when the cluster was there
	args       []string      // further flags of the node
	stops      []func()
}

// start makes a cluster of one node and a registry with one image.
func (f *fleet) start(ctx context.Context, log io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	// Short: the sockets of machines are below it.
	dir, err := os.MkdirTemp("/tmp", "fk-pb-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // the logs stay
			f.stop()
			err = fmt.Errorf("%w; logs are in %s", err, dir)
		}
	}()
	busybox, err := images.Busybox(ctx, filepath.Join(dir, "images"))
	if err != nil {
		return err
	}
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		return err
	}
	f.stops = append(f.stops, func() { _ = registry.Close() })
	if f.image, err = registry.Push("busybox:1", busybox); err != nil {
		return err
	}
	fmt.Fprintln(log, "Starting a control plane, a controller and a node")
	plane, err := cluster.StartControlPlane(ctx, "hack/controlplane/bin/controlplane", dir)
	if err != nil {
		return err
	}
	f.stops = append(f.stops, plane.Stop)
	f.kubeconfig = plane.Kubeconfig
	controller, err := plane.StartController(ctx, "bin/vk-firkin", filepath.Join(dir, "controller"))
	if err != nil {
		return err
	}
	f.stops = append(f.stops, controller.Stop)
	node, err := plane.StartNode(ctx, cluster.NodeOptions{
		Name: "bench", Binary: "bin/vk-firkin", Kits: "bin/guest", Dir: dir, InsecureRegistries: []string{registry.Addr()}, Args: f.args,
	})
	if err != nil {
		return err
	}
	f.node = node
	f.stops = append(f.stops, node.Stop)
	f.stops = append([]func(){func() { _ = os.RemoveAll(dir) }}, f.stops...)
	return nil
}

// stop ends what start started, the last first.
func (f *fleet) stop() {
	for len(f.stops) > 0 {
		last := len(f.stops) - 1
		f.stops[last]()
		f.stops = f.stops[:last]
	}
}

// phases are the parts of a pod's start, in order, as the node's metrics call them.
var phases = []string{"schedule_seen", "image", "restore", "agent", "volumes", "container_start"}

// profile tells where the time of the starts went: the mean of each phase, by path.
func (f *fleet) profile(ctx context.Context, out io.Writer) error {
	if f.node == nil {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "mean of a phase\t%s\n", strings.Join(paths, "\t"))
	for _, phase := range phases {
		fmt.Fprint(w, phase)
		for _, path := range paths {
			labels := []string{`phase="` + phase + `"`, `path="` + path + `"`}
			sum, _, err := f.node.Metric(ctx, "vk_firkin_pod_start_phase_seconds_sum", labels...)
			if err != nil {
				return err
			}
			count, found, err := f.node.Metric(ctx, "vk_firkin_pod_start_phase_seconds_count", labels...)
			if err != nil {
				return err
			}
			if !found {
				fmt.Fprint(w, "\t-")
				continue
			}
			fmt.Fprintf(w, "\t%s", ms(time.Duration(sum/count*float64(time.Second))))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

var errTimeout = errors.New("not in time")
