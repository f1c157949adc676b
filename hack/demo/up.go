// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// up starts registry, control plane and node and keeps them until it is told to stop.
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
	registry, err := startRegistry(starting, dir)
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	defer registry.stop()
	r.Registry, r.Images = registry.Address, registry.Images
	fmt.Printf("registry with %d images is up after %.1fs\n", len(r.Images), time.Since(began).Seconds())

	began = time.Now()
	plane, err := cluster.StartControlPlane(starting, "hack/controlplane/bin/controlplane", dir)
	if err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	defer plane.Stop()
	r.Kubeconfig, r.Kubectl = plane.Kubeconfig, filepath.Join(plane.Dir, "bin", "kubectl")
	fmt.Printf("control plane is up after %.1fs\n", time.Since(began).Seconds())

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

// registryProcess is hack/registry, serving the demo's images on loopback.
type registryProcess struct {
	Address string   `json:"address"`
	Images  []string `json:"images"`

	cmd    *exec.Cmd
	exited chan struct{}
}

func startRegistry(ctx context.Context, dir string) (*registryProcess, error) {
	r := &registryProcess{cmd: exec.Command("bin/registry", "--addr", "127.0.0.1:0", "--cache", filepath.Join(dir, "images"), "--images", "busybox,debian"), exited: make(chan struct{})}
	r.cmd.Stderr = os.Stdout // its progress is what the user waits for
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		defer close(r.exited)
		line, err := bufio.NewReader(out).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, r)
		}
		ready <- err
		_, _ = io.Copy(io.Discard, out)
		_ = r.cmd.Wait()
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *registryProcess) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.exited:
	case <-time.After(10 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.exited
	}
}
