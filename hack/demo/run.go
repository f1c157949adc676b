// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// podStart is how long a pod took from being bound to Running, by this host's clock.
type podStart struct {
	Pod   string        `json:"pod"`
	What  string        `json:"what"`
	Bound time.Duration `json:"boundToRunning"`
}

func startsPath(dir string) string { return filepath.Join(dir, "starts.json") }

// run shows the pods of examples/ as a user would meet them, and measures.
func run(ctx context.Context, dir string) error {
	r, err := readRunning(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", r.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	show := func(args ...string) error {
		fmt.Printf("\n\033[1m$ kubectl %s\033[0m\n", strings.Join(args, " "))
		cmd := exec.CommandContext(ctx, r.Kubectl, append([]string{"--kubeconfig", r.Kubeconfig}, args...)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		return cmd.Run()
	}

	d := &demonstration{running: r, client: client, show: show}
	var starts []podStart
	for _, step := range []struct{ pod, file, what string }{
		{"hello", "busybox.yaml", "busybox, first pod of the image"},
		{"hello-again", "busybox.yaml", "busybox, second pod"},
		{"web", "debian-http.yaml", "Debian with python3, first pod of the image"},
		{"web-again", "debian-http.yaml", "Debian with python3, second pod"},
	} {
		manifest, err := r.example(step.file)
		if err != nil {
			return err
		}
		manifest = bytes.Replace(manifest, []byte("name: "+strings.TrimSuffix(step.pod, "-again")+"\n"), []byte("name: "+step.pod+"\n"), 1)
		took, err := applyAndTime(ctx, client, r, step.pod, manifest)
		if err != nil {
			return fmt.Errorf("pod %q: %w; the node's log is %s", step.pod, err, r.NodeLog)
		}
		fmt.Printf("\nexamples/%s as pod %s: Running %.2fs after it was bound\n", step.file, step.pod, took.Seconds())
		starts = append(starts, podStart{Pod: step.pod, What: step.what, Bound: took})
	}
	// python needs a moment to listen after its container is Running.
	const get = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/').status, 'from', open('/etc/debian_version').read().strip())"
	for _, args := range [][]string{
		{"get", "nodes", "-o", "wide"},
		{"get", "pods", "-o", "wide"},
		{"logs", "hello"},
		{"exec", "hello", "--", "uname", "-a"},
		{"exec", "web", "--", "python3", "-c", "import time\nfor _ in range(50):\n  try:\n    " + get + "; break\n  except OSError: time.sleep(0.2)"},
		{"get", "events", "--field-selector", "involvedObject.name=hello"},
	} {
		if err := show(args...); err != nil {
			return err
		}
	}
	warm, err := d.warmPool(ctx)
	if err != nil {
		return fmt.Errorf("warm pool: %w; the node's log is %s", err, r.NodeLog)
	}
	return writeJSON(startsPath(dir), append(starts, warm...))
}

// applyAndTime creates a pod and returns the time between the watch showing it bound
// and the watch showing it Running.
func applyAndTime(ctx context.Context, client kubernetes.Interface, r running, name string, manifest []byte) (time.Duration, error) {
	pods := client.CoreV1().Pods("default")
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err == nil {
		for {
			if _, err := pods.Get(ctx, name, metav1.GetOptions{}); err != nil {
				break
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return 0, err
			}
		}
	}
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	watch, err := pods.Watch(ctx, metav1.ListOptions{
		ResourceVersion: list.ResourceVersion,
		FieldSelector:   fields.OneTermEqualSelector("metadata.name", name).String(),
	})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	apply := exec.CommandContext(ctx, r.Kubectl, "--kubeconfig", r.Kubeconfig, "apply", "-f", "-")
	apply.Stdin = bytes.NewReader(manifest)
	if out, err := apply.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("apply: %w: %s", err, out)
	}
	var bound time.Time
	for {
		select {
		case event, open := <-watch.ResultChan():
			if !open {
				return 0, fmt.Errorf("the watch ended")
			}
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if bound.IsZero() && pod.Spec.NodeName != "" {
				bound = time.Now()
			}
			switch pod.Status.Phase {
			case corev1.PodRunning:
				return time.Since(bound), nil
			case corev1.PodFailed:
				return 0, fmt.Errorf("it failed: %s %s", pod.Status.Reason, pod.Status.Message)
			default: // not yet
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
