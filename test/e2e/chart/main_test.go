// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chart

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

const chartDir = "../../../charts/vk-firkin"

// binary is the path of a program that make has built.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil || os.Getenv("FIRKIN_BIN_DIR") == "" {
		t.Fatalf("%s is not built (make helm build; FIRKIN_BIN_DIR): %v", name, err)
	}
	return path
}

// helm runs Helm, with nothing of the user's.
func helm(t *testing.T, kubeconfig string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t, "helm"), args...)
	home := t.TempDir()
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home, "KUBECONFIG=" + kubeconfig}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, complaints.String(), out.String())
	}
	return out.String(), nil
}

// clusterUnderTest is a control plane and a release of the chart in it.
type clusterUnderTest struct {
	*cluster.ControlPlane
	dir string
}

func startCluster(t *testing.T) *clusterUnderTest {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fk-chart-") // short: there are sockets below it
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	plane, err := cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		plane.Stop()
		if t.Failed() {
			t.Log("logs are kept in", dir)
		} else {
			_ = os.RemoveAll(dir)
		}
	})
	return &clusterUnderTest{plane, dir}
}

// kubectl runs kubectl with input and returns what it printed, complaints and warnings too.
func (c *clusterUnderTest) kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := c.Kubectl(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is kubectl that may not fail.
func (c *clusterUnderTest) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// refused is kubectl that must fail, and say all of says.
func (c *clusterUnderTest) refused(t *testing.T, stdin string, says []string, args ...string) {
	t.Helper()
	out, err := c.kubectl(t, stdin, args...)
	if err == nil {
		t.Errorf("kubectl %s is not refused: %s", strings.Join(args, " "), out)
	}
	for _, part := range says {
		if !strings.Contains(out, part) {
			t.Errorf("kubectl %s: the refusal does not say %q: %s", strings.Join(args, " "), part, out)
		}
	}
}

// eventually asks until there is no error.
func eventually(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %s: %v", what, limit, err)
}
