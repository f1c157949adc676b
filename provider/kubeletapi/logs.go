// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
)

// A container may be seen running a moment before the first piece of its log is on
// disk: that long a request for its log waits for it.
const (
	logAppearTimeout  = 5 * time.Second
	logAppearInterval = 100 * time.Millisecond
)

// logRequest is a request for a log, decoded.
type logRequest struct {
	podlog.ReadOptions
	previous bool
}

// errUndecodable: a query whose values are not of the types of v1.PodLogOptions, which
// the kubelet tells apart from values that may not be.
var errUndecodable = errors.New("unable to decode query")

// parseLogRequest decodes the query of v1.PodLogOptions. The limits are those of
// the API's validation.
func parseLogRequest(q url.Values, now time.Time) (logRequest, error) {
	var r logRequest
	var errs []error
	// The kubelet's older name for it.
	if tail := q.Get("tail"); tail != "" {
		q = maps.Clone(q)
		q.Set("tailLines", tail)
		if tail == "all" {
			q.Del("tailLines")
		}
	}
	number := func(name string, least int64) *int64 {
		if !q.Has(name) {
			return nil
		}
		n, err := strconv.ParseInt(q.Get(name), 10, 64)
		if err != nil {
			err = fmt.Errorf("%w: %w", errUndecodable, err)
		} else if n < least {
			err = fmt.Errorf("must be at least %d", least)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("invalid %s %q: %w", name, q.Get(name), err))
			return nil
		}
		return &n
	}
	// As the API machinery converts it: whatever is not false is true.
	boolean := func(name string) bool {
		return q.Has(name) && q.Get(name) != "0" && !strings.EqualFold(q.Get(name), "false")
	}
	r.Tail = number("tailLines", 0)
	r.LimitBytes = number("limitBytes", 1)
	r.Follow, r.Timestamps, r.previous = boolean("follow"), boolean("timestamps"), boolean("previous")
	if s := number("sinceSeconds", 1); s != nil {
		r.Since = now.Add(-time.Duration(min(*s, math.MaxInt64/int64(time.Second))) * time.Second)
	}
	if q.Has("sinceTime") {
		t, err := time.Parse(time.RFC3339, q.Get("sinceTime"))
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("invalid sinceTime: %w: %w", errUndecodable, err))
		case q.Has("sinceSeconds"):
			errs = append(errs, errors.New("at most one of sinceTime and sinceSeconds may be specified"))
		}
		r.Since = t
	}
	switch stream := q.Get("stream"); stream {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout:
		r.Stream = podlog.StreamStdout
	case corev1.LogStreamStderr:
		r.Stream = podlog.StreamStderr
	default:
		errs = append(errs, fmt.Errorf("invalid stream %q", stream))
	}
	if r.Stream != "" && r.Tail != nil {
		errs = append(errs, errors.New("tailLines cannot be combined with a single stream"))
	}
	return r, errors.Join(errs...)
}

// chooseRun says which run's log is meant, or why there is none, in the kubelet's
// words (validateContainerLogStatus in kubelet_pods.go).
func chooseRun(t provider.Target, pod, container string, previous bool, exists func(provider.ContainerRef) bool) (provider.ContainerRef, error) {
	if previous {
		if t.Previous == nil {
			return provider.ContainerRef{}, fmt.Errorf("previous terminated container %q in pod %q not found", container, pod)
		}
		return *t.Previous, nil
	}
	switch {
	case t.State.Running != nil:
		return t.ContainerRef, nil
	case exists(t.ContainerRef):
		return t.ContainerRef, nil
	case t.Previous != nil:
		return *t.Previous, nil
	case t.State.Terminated != nil:
		return provider.ContainerRef{}, fmt.Errorf("container %q in pod %q is terminated", container, pod)
	case t.State.Waiting == nil:
		return provider.ContainerRef{}, fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", container, pod)
	}
	reason := t.State.Waiting.Reason
	switch reason {
	case "ErrImagePull":
		reason = "image can't be pulled"
	case "ImagePullBackOff":
		reason = "trying and failing to pull image"
	}
	return provider.ContainerRef{}, fmt.Errorf("container %q in pod %q is waiting to start: %s", container, pod, reason)
}

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	namespace, pod, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	req, err := parseLogRequest(r.URL.Query(), time.Now())
	if err != nil {
		code := http.StatusUnprocessableEntity
		if errors.Is(err, errUndecodable) {
			code = http.StatusBadRequest
		}
		http.Error(w, err.Error(), code)
		return
	}
	target, err := s.opts.Containers.Target(namespace, pod, container)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	run, err := chooseRun(target, pod, container, req.previous, s.opts.Logs.Exists)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if target.State.Running != nil && !req.previous {
		s.awaitLog(r.Context(), run)
	}
	out := &flushingWriter{w: w, flush: http.NewResponseController(w).Flush}
	w.Header().Set("Content-Type", "text/plain")
	if req.Follow {
		// The client learns that it is connected, though there may be nothing to read yet.
		if err := out.flush(); err != nil {
			return
		}
	}
	err = s.opts.Logs.Read(r.Context(), run, req.ReadOptions, out)
	switch {
	case err == nil || r.Context().Err() != nil:
	case out.wrote || req.Follow:
		// The status is sent: all that is left is to break off, so that the client does
		// not take it for the end.
		s.opts.Logger.Warn("Log ended early", "pod", namespace+"/"+pod, "container", container, "error", err)
		panic(http.ErrAbortHandler)
	case errors.Is(err, podlog.ErrNoLog) && target.State.Running != nil:
		// It runs and has not written anything yet.
	case errors.Is(err, podlog.ErrNoLog):
		http.Error(w, fmt.Sprintf("log of container %q in pod %q is not available any more", container, pod), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// awaitLog returns when the log is there, or soon.
func (s *Server) awaitLog(ctx context.Context, run provider.ContainerRef) {
	ctx, cancel := context.WithTimeout(ctx, logAppearTimeout)
	defer cancel()
	ticker := time.NewTicker(logAppearInterval)
	defer ticker.Stop()
	for !s.opts.Logs.Exists(run) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func statusOf(err error) int {
	if errors.Is(err, provider.ErrNotFound) {
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// flushingWriter passes every write on to the client at once.
type flushingWriter struct {
	w     http.ResponseWriter
	flush func() error
	wrote bool
}

func (f *flushingWriter) Write(b []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(b)
	if err == nil {
		err = f.flush()
	}
	return n, err
}
