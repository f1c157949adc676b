// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// demonstration is a run of the demo on what is up.
type demonstration struct {
	running running
	client  kubernetes.Interface
	// show runs kubectl and shows both.
	show func(args ...string) error
}

// example reads a manifest of examples/ and takes its images from the demo's registry.
func (r running) example(file string) ([]byte, error) {
	manifest, err := os.ReadFile(filepath.Join("examples", file))
	if err != nil {
		return nil, err
	}
	for theirs, ours := range map[string]string{"busybox:1": "busybox:latest", "python:3-slim": "debian:latest"} {
		manifest = bytes.ReplaceAll(manifest, []byte("image: "+theirs), []byte("image: "+r.Registry+"/"+ours))
	}
	return manifest, nil
}

// warmPool shows a template and a pool filling, pods that check out, and the pool filling
// again.
func (d *demonstration) warmPool(ctx context.Context) ([]podStart, error) {
	for _, file := range []string{"snapshot-template.yaml", "warm-pool.yaml"} {
		fmt.Printf("\n\033[1m$ kubectl apply -f examples/%s\033[0m\n", file)
		if err := d.apply(ctx, file); err != nil {
			return nil, err
		}
	}
	if err := d.fill(ctx); err != nil {
		return nil, err
	}
	look := []string{"get", "warmpool,nodeledger"}
	if err := d.show(look...); err != nil {
		return nil, err
	}
	var starts []podStart
	manifest, err := d.running.example("template-pod.yaml")
	if err != nil {
		return nil, err
	}
	for _, pod := range []string{"quick", "quick-again"} {
		named := bytes.Replace(manifest, []byte("name: quick\n"), []byte("name: "+pod+"\n"), 1)
		took, err := applyAndTime(ctx, d.client, d.running, pod, named)
		if err != nil {
			return nil, fmt.Errorf("pod %q: %w", pod, err)
		}
		fmt.Printf("\nexamples/template-pod.yaml as pod %s: Running %.2fs after it was bound\n", pod, took.Seconds())
		starts = append(starts, podStart{Pod: pod, What: "Debian with python3, from the warm pool", Bound: took})
	}
	for _, args := range [][]string{look, {"logs", "quick"}, {"get", "events", "--field-selector", "reason=MachineRestored,involvedObject.name=quick"}} {
		if err := d.show(args...); err != nil {
			return nil, err
		}
	}
	return starts, d.fill(ctx)
}

func (d *demonstration) apply(ctx context.Context, file string) error {
	manifest, err := d.running.example(file)
	if err != nil {
		return err
	}
	cmd := d.kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = bytes.NewReader(manifest)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}

func (d *demonstration) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.running.Kubectl, append([]string{"--kubeconfig", d.running.Kubeconfig}, args...)...)
}

// fill waits until the pool is full and shows how it gets there.
func (d *demonstration) fill(ctx context.Context) error {
	began := time.Now()
	last := ""
	for {
		out, err := d.kubectl(ctx, "get", "warmpool", "python", "-o", "json").Output()
		if err != nil {
			return err
		}
		var pool v1alpha1.WarmPool
		if err := json.Unmarshal(out, &pool); err != nil {
			return err
		}
		s := pool.Status
		if now := fmt.Sprintf("%d of %d ready, %d on the way", s.Ready, *pool.Spec.Replicas, s.Restoring); now != last {
			fmt.Printf("%6.1fs  pool python: %s\n", time.Since(began).Seconds(), now)
			last = now
		}
		if s.Ready == *pool.Spec.Replicas && s.ObservedGeneration == pool.Generation {
			return nil
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return fmt.Errorf("the pool is not full: %w", err)
		}
	}
}
