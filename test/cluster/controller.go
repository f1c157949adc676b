// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Controller is one `vk-firkin controller`. It can be killed and started again.
type Controller struct {
	LogPath string

	health  string
	binary  string
	args    []string
	process *exec.Cmd
	exited  chan struct{}
}

// StartController installs the API and starts a controller with a service account of its
// own; it returns when it is ready. args are further flags.
func (c *ControlPlane) StartController(ctx context.Context, binary, dir string, args ...string) (*Controller, error) {
	if err := c.InstallAPI(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	kubeconfig, err := c.controllerKubeconfig(ctx, dir)
	if err != nil {
		return nil, err
	}
	health, err := freePort()
	if err != nil {
		return nil, err
	}
	m := &Controller{LogPath: filepath.Join(dir, "controller.log"), binary: binary, health: "127.0.0.1:" + strconv.Itoa(health)}
	// The lease has its default, 15 s: with less, a host that is busy for a moment costs the
	// controller its lease, and nothing here starts it again as a Deployment would.
	m.args = append([]string{"controller", "--kubeconfig", kubeconfig, "--health-probe-address", m.health, "--metrics-address", ""}, args...)
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Launch starts the process and waits for nothing.
func (m *Controller) Launch() error {
	log, err := os.OpenFile(m.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	m.process = exec.Command(m.binary, m.args...)
	m.process.Stdout, m.process.Stderr = log, log
	m.process.SysProcAttr = childAttributes()
	if err := m.process.Start(); err != nil {
		return err
	}
	m.exited = make(chan struct{})
	go func(p *exec.Cmd, exited chan struct{}) {
		defer close(exited)
		_ = p.Wait()
	}(m.process, m.exited)
	return nil
}

// Start starts the process and waits until it says that it is ready.
func (m *Controller) Start(ctx context.Context) error {
	if err := m.Launch(); err != nil {
		return err
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.health+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-m.exited:
			return fmt.Errorf("the controller ended: %v; see %s", m.process.ProcessState, m.LogPath)
		case <-ctx.Done():
			return fmt.Errorf("the controller is not ready: %w; see %s", ctx.Err(), m.LogPath)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Kill ends the process as a crash would, and waits for it.
func (m *Controller) Kill() {
	_ = m.process.Process.Kill()
	<-m.exited
}

// Exited is closed when the process that was started last has ended.
func (m *Controller) Exited() <-chan struct{} { return m.exited }

// Stop ends the process in order.
func (m *Controller) Stop() {
	if m == nil || m.process == nil || m.process.Process == nil {
		return
	}
	_ = m.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.exited:
	case <-time.After(30 * time.Second):
		m.Kill()
	}
}
