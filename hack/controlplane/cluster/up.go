// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes control plane on loopback out of one multi-call binary: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler as child processes, with the certificates
// they need. It imports the standard library only: the programs themselves are linked by the main package.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options says where and how a control plane runs.
type Options struct {
	// Dir holds everything: data, certificates, logs. It is created, or reused with what is in it.
	Dir string
	// Port of the API server on 127.0.0.1; 0 takes the port Dir had last, or a free one.
	Port int
	// Executable is the multi-call binary.
	Executable string
	// Timeout bounds the time until the control plane is ready.
	Timeout time.Duration
	// Log receives progress at debug level and trouble at warn level; nil discards it.
	Log *slog.Logger
}

// Ready says where a control plane that has become ready is found.
type Ready struct {
	Kubeconfig string  `json:"kubeconfig"`
	Server     string  `json:"server"`
	Seconds    float64 `json:"seconds"` // from the call of Up
}

// Up starts a control plane, calls ready once it serves and has its default service account, and blocks
// until ctx ends or a component dies. Then it stops every component in order and returns once all are gone:
// nil when ctx ended after ready, ctx's cause when it ended before, and an error that names the component
// and the end of its log when one died. One Up at a time runs on a directory.
func Up(ctx context.Context, o Options, ready func(Ready) error) error {
	begin := time.Now()
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l, err := NewLayout(o.Dir)
	if err != nil {
		return err
	}
	if err := l.make(); err != nil {
		return err
	}
	unlock, err := lock(l)
	if err != nil {
		return err
	}
	defer unlock()
	port, ids, err := prepare(l, o)
	if err != nil {
		return err
	}
	server := serverURL(port)
	log.Debug("Prepared", "dir", l, "server", server, "seconds", time.Since(begin).Seconds())

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	run := &running{layout: l, log: log, spawner: newSpawner(), died: cancel}
	defer run.stop()
	api := newAPIClient(server, ids.ca, ids.admin)
	defer api.close()
	starting, stopTimer := context.WithTimeoutCause(ctx, o.Timeout,
		fmt.Errorf("control plane not ready within %s: see the logs in %s", o.Timeout, l.path("logs")))
	defer stopTimer()
	if err := run.bringUp(starting, api, port, ids.ca.certPEM); err != nil {
		return err
	}
	if err := writeFile(l.AdminKubeconfig(), kubeconfig(server, userAdmin, ids.ca.certPEM, ids.admin.certPEM, ids.admin.keyPEM), 0o600); err != nil {
		return err
	}
	stopTimer()
	if err := ready(Ready{
		Kubeconfig: l.AdminKubeconfig(), Server: server,
		Seconds: float64(time.Since(begin).Milliseconds()) / 1000,
	}); err != nil {
		return err
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); errors.As(cause, new(*diedError)) {
		return cause
	}
	return nil
}

// prepare writes everything the components read, and returns the API server's port.
func prepare(l Layout, o Options) (int, identities, error) {
	ids, err := ensureIdentities(l, time.Now())
	if err != nil {
		return 0, ids, err
	}
	port, err := choosePort(l, o.Port)
	if err != nil {
		return 0, ids, err
	}
	if err := writeFile(l.Port(), []byte(strconv.Itoa(port)+"\n"), 0o644); err != nil {
		return 0, ids, err
	}
	for _, k := range []struct {
		component, user string
		pair            *pair
	}{
		{ControllerManager, userControllerManager, ids.controllerManager},
		{Scheduler, userScheduler, ids.scheduler},
	} {
		data := kubeconfig(serverURL(port), k.user, ids.ca.certPEM, k.pair.certPEM, k.pair.keyPEM)
		if err := writeFile(l.ComponentKubeconfig(k.component), data, 0o600); err != nil {
			return 0, ids, err
		}
	}
	for _, name := range []string{Etcd, APIServer, ControllerManager, Scheduler, Kubectl, ControlPlane} {
		if err := link(o.Executable, l.Bin(name)); err != nil {
			return 0, ids, err
		}
	}
	return port, ids, nil
}

// link makes path a symlink to target, whatever it was before.
func link(target, path string) error {
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link %s: %w", path, err)
	}
	if err := os.Symlink(target, path); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	return nil
}

// lock keeps a second `up` off the directory until the returned function is called or this process ends.
func lock(l Layout) (func(), error) {
	f, err := os.OpenFile(l.Lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock control plane directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("a control plane already runs on %s (process %s): stop it or choose another directory",
				l, strings.TrimSpace(string(pid[:n])))
		}
		return nil, fmt.Errorf("lock control plane directory: %w", err)
	}
	_ = f.Truncate(0) // the process id is for people only
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return func() { _ = f.Close() }, nil
}

// running owns the components of one Up.
type running struct {
	layout   Layout
	log      *slog.Logger
	spawner  *spawner
	died     context.CancelCauseFunc
	children []*child
	watchers sync.WaitGroup
}

// bringUp starts the components, and returns when all serve and the cluster has what its users expect.
func (r *running) bringUp(ctx context.Context, api *apiClient, port int, caPEM []byte) error {
	for _, step := range []func() error{
		func() error { return r.start(etcd(r.layout)) },
		// The API server looks for etcd once a second: waiting here is quicker.
		func() error { return waitSocket(ctx, r.layout.EtcdSocket()) },
		func() error { return r.start(apiServer(r.layout, port)) },
		func() error { return api.waitOK(ctx, "/readyz") },
		// Not before: it gives up when its role does not exist after ten seconds, as on a busy host.
		func() error { return r.start(controllerManager(r.layout)) },
		// Not before: a scheduler that is refused, since its role does not exist yet, waits for seconds to ask again.
		func() error { return r.start(scheduler(r.layout)) },
		func() error { return api.bindKubeletClient(ctx) },
		func() error { return api.publishClusterInfo(ctx, caPEM) },
		func() error { return api.waitOK(ctx, "/api/v1/namespaces/default/serviceaccounts/default") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// start starts a component. If it exits before stop, the context of Up ends.
func (r *running) start(c component) error {
	r.log.Debug("Starting", "component", c.name)
	ch, err := startChild(r.spawner, r.layout, c)
	if err != nil {
		return err
	}
	r.children = append(r.children, ch)
	r.watchers.Go(func() {
		<-ch.exited
		r.died(&diedError{child: ch}) // of no effect once the context has ended
	})
	return nil
}

// stop stops the components in reverse order and returns once all are gone.
func (r *running) stop() {
	r.died(nil)
	for _, ch := range slices.Backward(r.children) {
		ch.stop(r.log)
	}
	r.watchers.Wait()
	r.spawner.close()
}
