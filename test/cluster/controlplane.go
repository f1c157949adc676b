// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster starts what the end-to-end tests and the demo run on: the embedded
// control plane and node processes of this host. Everything listens on loopback, but for a
// node that is given another address.
package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ControlPlane is the embedded control plane, as a process of its own, or a cluster that somebody else runs.
type ControlPlane struct {
	Dir string
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string

	binary   string
	process  *exec.Cmd
	exited   chan struct{}
	attached *attached // instead of a process of ours
}

// StartControlPlane starts the multi-call binary (hack/controlplane) with its data
// in dir/cp and returns when it is ready. ctx bounds the start only: the processes
// run until Stop, or until this process dies.
func StartControlPlane(ctx context.Context, binary, dir string) (*ControlPlane, error) {
	c := &ControlPlane{Dir: filepath.Join(dir, "cp"), binary: binary}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Start starts the processes, again after Kill, with the data and the port they had, and
// returns when they are ready.
func (c *ControlPlane) Start(ctx context.Context) error {
	if c.attached != nil {
		return fmt.Errorf("start the processes of a cluster that somebody else runs: %w", errors.ErrUnsupported)
	}
	c.exited = make(chan struct{})
	c.process = exec.Command(c.binary, "up", "--dir", c.Dir)
	c.process.SysProcAttr = childAttributes()
	log, err := os.OpenFile(filepath.Join(filepath.Dir(c.Dir), "controlplane.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c.process.Stderr = log
	out, err := c.process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.process.Start(); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go func(process *exec.Cmd, exited chan struct{}) {
		defer close(exited)
		var up struct {
			Kubeconfig string `json:"kubeconfig"`
		}
		line, err := bufio.NewReader(out).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &up)
		}
		if err == nil {
			c.Kubeconfig = up.Kubeconfig
		}
		ready <- err
		_, _ = io.Copy(io.Discard, out)
		_ = process.Wait()
	}(c.process, c.exited)
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.Stop()
		return fmt.Errorf("%w; see %s", err, log.Name())
	}
	return nil
}

// Kill ends the API server, and all of the control plane with it, as a crash would. What etcd
// has written stays.
func (c *ControlPlane) Kill() {
	_ = c.process.Process.Kill()
	<-c.exited
}

// Stop ends the control plane and waits for it. Of a cluster that somebody else runs it removes the nodes that
// were made.
func (c *ControlPlane) Stop() {
	if c != nil && c.attached != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.detach(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "nodes are left in the cluster:", err)
		}
		return
	}
	if c == nil || c.process == nil || c.process.Process == nil {
		return
	}
	_ = c.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(30 * time.Second):
		_ = c.process.Process.Kill()
		<-c.exited
	}
}

// Components are the ids of the processes that the control plane is made of.
func (c *ControlPlane) Components() []int {
	var pids []int
	for pid, p := range hostProcesses() {
		if p.parent == c.process.Process.Pid {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// Credentials writes what a node with this name needs to join, to out.
func (c *ControlPlane) Credentials(ctx context.Context, name, out string) error {
	return c.credentials(ctx, name, c.NodeIP(), out)
}

func (c *ControlPlane) credentials(ctx context.Context, name, ip, out string) error {
	if c.attached != nil {
		if err := c.requestCredentials(ctx, name, ip, out); err != nil {
			return fmt.Errorf("credentials for node %q: %w", name, err)
		}
		return nil
	}
	cmd := exec.CommandContext(ctx, c.binary, "node-credentials", "--dir", c.Dir, "--name", name, "--ip", ip, "--out", out)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("credentials for node %q: %w: %s", name, err, b)
	}
	return nil
}

// Kubectl prepares a kubectl with the administrator's rights: of the embedded release, or the user's own.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	if c.attached != nil {
		command := c.attached.kubectl
		return exec.CommandContext(ctx, command[0], slices.Concat(command[1:], []string{"--kubeconfig", c.Kubeconfig}, args)...)
	}
	return exec.CommandContext(ctx, c.binary, append([]string{"kubectl", "--kubeconfig", c.Kubeconfig}, args...)...)
}

// Output runs kubectl and returns what it printed. The error has what it complained.
func (c *ControlPlane) Output(ctx context.Context, args ...string) (string, error) {
	cmd := c.Kubectl(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
