// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
)

// up starts registry, control plane, controller and node and keeps them until it is told to stop.
func up(ctx context.Context, dir string) (err error) {
	failed := filepath.Join(dir, "up.failed")
	_ = os.Remove(failed)
	defer func() {
		if err != nil {
			_ = os.WriteFile(failed, []byte(err.Error()), 0o600)
		}
	}()
	starting, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()

	r := running{}
	began := time.Now()
	registry, err := serveImages(starting, dir)
	if err != nil {
		return fmt.Errorf("serve images: %w", err)
	}
	defer func() { _ = registry.Close() }()
	r.Registry = registry.Addr()
	fmt.Printf("registry with two images is up after %.1fs\n", time.Since(began).Seconds())

	began = time.Now()
	plane, err := cluster.StartControlPlane(starting, "hack/controlplane/bin/controlplane", dir)
	if err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	defer plane.Stop()
	r.Kubeconfig, r.Kubectl = plane.Kubeconfig, filepath.Join(plane.Dir, "bin", "kubectl")
	fmt.Printf("control plane is up after %.1fs\n", time.Since(began).Seconds())

	began = time.Now()
	controller, err := plane.StartController(starting, "bin/vk-firkin", filepath.Join(dir, "controller"))
	if err != nil {
		return fmt.Errorf("start controller: %w", err)
	}
	defer controller.Stop()
	fmt.Printf("controller is ready after %.1fs\n", time.Since(began).Seconds())

	began = time.Now()
	node, err := plane.StartNode(starting, cluster.NodeOptions{
		Name: "demo", Binary: "bin/vk-firkin", Kits: "bin/guest", Dir: dir,
		InsecureRegistries: []string{r.Registry},
	})
	if err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	defer node.Stop()
	r.StateDir, r.Metrics, r.NodeLog = node.StateDir, node.MetricsAddress, node.LogPath
	fmt.Printf("node is Ready after %.1fs\n", time.Since(began).Seconds())

	if err := waitForSnapshot(starting, r.StateDir); err != nil {
		return err
	}
	if err := writeJSON(runningPath(dir), r); err != nil {
		return err
	}
	<-ctx.Done()
	return os.Remove(runningPath(dir))
}

// waitForSnapshot waits for the base snapshot that the node prepares after its start.
func waitForSnapshot(ctx context.Context, state string) error {
	began := time.Now()
	for {
		if found, _ := filepath.Glob(filepath.Join(state, "snapshots", "*", "manifest.json")); len(found) > 0 {
			fmt.Printf("base snapshot is there after %.1fs\n", time.Since(began).Seconds())
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the base snapshot: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serveImages makes the demo's images and serves them on loopback.
func serveImages(ctx context.Context, dir string) (*images.Registry, error) {
	cache := filepath.Join(dir, "images")
	busybox, err := images.Busybox(ctx, cache)
	if err != nil {
		return nil, err
	}
	debian, err := images.Debian(ctx, cache, os.Stdout) // its progress is what the user waits for
	if err != nil {
		return nil, err
	}
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		return nil, err
	}
	for name, img := range map[string]v1.Image{"busybox": busybox, "debian": debian} {
		if _, err := registry.Push(name+":latest", img); err != nil {
			return nil, errors.Join(err, registry.Close())
		}
	}
	return registry, nil
}
