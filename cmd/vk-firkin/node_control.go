// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/garbage"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// A running node answers its own commands on a socket in its state folder, which is
// readable by nobody else: it alone knows what it uses, and holds the locks.
const (
	controlSocket = "node.sock"
	controlGC     = "/v1/gc"
	controlAlive  = "/v1/alive"
	controlStatus = "/v1/status"
	controlLeave  = "/v1/leave"
	// controlHandover is for a node that another one takes the place of.
	controlHandover = "/v1/handover"
	// maxControlRequest and maxControlReport bound what either side reads.
	maxControlRequest = 4 << 10
	maxControlReport  = 64 << 20
	// controlTimeout bounds a whole command: snapshots of hundreds of gigabytes may go.
	controlTimeout = 15 * time.Minute
	// controlAnswer is how soon a node says that it is there, which it does whatever it is
	// busy with.
	controlAnswer = 10 * time.Second
)

// serveControl serves the socket until ctx ends. Pods are run without it all the same.
func (n *node) serveControl(ctx context.Context) {
	listener, err := listenControl(n.StateDir)
	if err != nil {
		n.logger.Error("Commands of this host will not reach this node while it runs", "socket", controlSocket, "error", err)
		return
	}
	if err := answer(ctx, listener, n.controls()); err != nil {
		n.logger.Error("Commands of this host do not reach this node any more", "socket", controlSocket, "error", err)
	}
}

// controls are what commands may ask a node for.
func (n *node) controls() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"POST " + controlGC:    func(w http.ResponseWriter, r *http.Request) { serveGC(w, r, n.collect) },
		"GET " + controlStatus: func(w http.ResponseWriter, r *http.Request) { reply(w, n.report(r.Context())) },
		"POST " + controlLeave: func(w http.ResponseWriter, r *http.Request) {
			leaving{left: n.podsWithMachines, hold: n.provider.Hold, drain: n.supply.Drain, refill: n.supply.Resume}.serve(w, r)
		},
		"POST " + controlHandover: n.handover.serve,
	}
}

// reply is the answer to a command.
func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the caller is gone if this fails
}

// answer serves a listener until ctx ends, and until no collection that a command asked for
// is under way: what it collects from is closed after that, and its locks are given back.
func answer(ctx context.Context, listener net.Listener, controls map[string]http.HandlerFunc) error {
	ctx, cancel := context.WithCancel(ctx)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+controlAlive, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for pattern, serve := range controls {
		mux.HandleFunc(pattern, serve)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	var err error // of the server; read when it has ended
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if serr := server.Serve(listener); !errors.Is(serr, http.ErrServerClosed) {
			err = serr
		}
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	cancel() // which collections under way see
	sctx, done := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer done()
	down := server.Shutdown(sctx)
	if down != nil {
		down = errors.Join(down, server.Close())
	}
	<-ended
	return errors.Join(err, down)
}

// listenControl makes the socket, in the place of one that a dead node has left: the state
// folder belongs to one node at a time.
func listenControl(stateDir string) (net.Listener, error) {
	if err := os.Remove(filepath.Join(stateDir, controlSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	file, err := machinedir.ListenUnix(stateDir, controlSocket)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// The folder may be older than the node, and open to others.
	if err := os.Chmod(filepath.Join(stateDir, controlSocket), 0o600); err != nil {
		return nil, err
	}
	return net.FileListener(file)
}

// serveGC collects for a command.
func serveGC(w http.ResponseWriter, r *http.Request, collect func(context.Context, garbage.Options) (garbage.Report, error)) {
	var opts garbage.Options
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&opts); err != nil {
		http.Error(w, "not understood: "+err.Error(), http.StatusBadRequest)
		return
	}
	if opts.Grace < 0 {
		http.Error(w, "grace must not be negative", http.StatusBadRequest)
		return
	}
	report, err := collect(r.Context(), opts)
	if err != nil && len(report.Faults) == 0 { // else they are in the report
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, report)
}

// errNoNode: no node runs on this state folder.
var errNoNode = errors.New("no node runs here")

// patience is how long a command waits for a node: to say that it is there, and for the whole.
type patience struct{ answer, whole time.Duration }

// usual is the patience of commands that have no time-out of their own.
var usual = patience{answer: controlAnswer, whole: controlTimeout}

// alive asks a node whether it is there. Whatever it answers, it is: one of another version
// may not know the question.
func alive(ctx context.Context, client *http.Client, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+controlAlive, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// hungNode says what can be done about a node that is there and does not answer.
func hungNode(stateDir string, wait time.Duration) error {
	lock, err := durable.LockDir(stateDir)
	if err == nil {
		return errors.Join(fmt.Errorf("the node has just ended without an answer: try again"), lock.Close())
	}
	who, end := "node", "end it"
	var locked *durable.LockedError
	if errors.As(err, &locked) && locked.PID != 0 {
		who, end = fmt.Sprintf("node (process %d)", locked.PID), fmt.Sprintf("end it (kill -9 %d)", locked.PID)
	}
	return fmt.Errorf("the running %s has not answered at %s for %s: it hangs or is stopped, its log may tell why. Its machines do not need it: %s, start it again, and the new one has them", who, controlSocket, wait, end)
}

// askNode has the running node collect. errNoNode: there is none.
func askNode(ctx context.Context, stateDir string, opts garbage.Options, p patience) (report garbage.Report, err error) {
	err = ask(ctx, stateDir, p, http.MethodPost, controlGC, opts, &report)
	return report, err
}

// ask sends a command to the running node, and decodes its answer. errNoNode: there is none.
func ask(ctx context.Context, stateDir string, p patience, method, path string, in, out any) error {
	asking := ctx
	ctx, cancel := context.WithTimeout(ctx, p.whole)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return machinedir.DialUnix(ctx, stateDir, controlSocket)
		},
	}}
	gone := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) }
	switch err := alive(ctx, client, p.answer); {
	case err == nil:
	case gone(err):
		return errNoNode
	case asking.Err() != nil:
		return asking.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return hungNode(stateDir, min(p.answer, p.whole))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ask the running node: %w: run this as the user that the node runs as", err)
	default:
		return fmt.Errorf("ask the running node: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if gone(err) {
		return errNoNode
	}
	if errors.Is(err, context.DeadlineExceeded) && asking.Err() == nil {
		return fmt.Errorf("the node has not finished within %s, and stops where it is: try again, with a longer --timeout; a disk that does not answer keeps it as well, its log tells more", p.whole)
	}
	if err != nil {
		return fmt.Errorf("ask the running node: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxControlReport+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the running node's answer: %w", err)
	case len(data) > maxControlReport:
		return fmt.Errorf("the running node's answer has more than %d bytes", maxControlReport)
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("the running node is of another version and does not know this command: restart it (its machines go on)")
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the running node says: %.1000s", bytes.TrimSpace(data))
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("understand the running node's answer: %w", err)
	}
	return nil
}
