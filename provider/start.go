// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// MachinePrefix begins the id of every machine that was made for a pod.
const MachinePrefix = "pod-"

// Delays between tries of the parts of a start; the kubelet's are of this order.
const (
	machineRetryFirst, machineRetryMax = 2 * time.Second, time.Minute
	prepareRetryFirst, prepareRetryMax = 500 * time.Millisecond, 2 * time.Minute
	configRetryFirst, configRetryMax   = 2 * time.Second, time.Minute
	connectionRetry                    = 200 * time.Millisecond
	acquireTimeout                     = 10 * time.Minute // a base snapshot may have to be built first, without hardware virtualization
	macOSPullTimeout                   = 2 * time.Hour    // an installation has tens of GB
	prepareTimeout                     = 2 * time.Minute
	containerTimeout                   = 2 * time.Minute
)

// machineID is the id of a pod's n-th machine. It follows from the two alone.
func machineID(uid string, generation int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", uid, generation))
	return MachinePrefix + hex.EncodeToString(sum[:10])
}

// acquire asks for a machine. Its id is on disk before it is asked for.
func (w *worker) acquire() {
	s := &w.s
	m := &s.machine
	before := *m
	m.generation++
	m.id, m.step = machineID(w.uid, m.generation), machineAcquiring
	m.shape, m.budget = s.plan.shape, s.plan.budget
	m.acquired, m.prepared, m.synced, m.passed, m.path = false, false, false, 0, ""
	m.slots, m.files = nil, nil
	if s.plan.template == nil {
		for _, key := range s.plan.images {
			if img := s.images[key].image; !slices.Contains(m.slots, img.Digest) {
				m.slots = append(m.slots, img.Digest)
				m.files = append(m.files, img.DiskPath)
			}
		}
	}
	if w.volumes == nil { // what volumes and variables are made of is fetched meanwhile
		w.volumes = newVolumeKeeper(w.env, w.log, m.shape)
		fetch := w.volumes.prefetch(s.pod)
		w.acts.Go(func() { fetch(w.start) })
	}
	if !w.save() {
		*m = before // by the same id the next time: the record may be on disk all the same
		return
	}
	req := w.machineRequest()
	keys := slices.Clone(s.plan.images)
	w.log.Info("Acquiring machine", "machine", req.MachineID, "shape", req.Shape.String())
	w.acts.Go(func() {
		limit := acquireTimeout
		if req.Template != nil {
			limit += req.Template.Recipe.Limit() // it may have to be carried out first
			if req.Template.GuestOS == vm.GuestMacOS {
				limit += macOSPullTimeout
			}
		}
		ctx, cancel := context.WithTimeout(w.start, limit)
		defer cancel()
		lease, err := w.env.supply.Acquire(ctx, req)
		answered := time.Now()
		var images map[imageKey]*Image
		if err == nil && req.Template != nil {
			images, err = w.env.leasedImages(ctx, req, keys, lease)
		}
		w.post(func(s *state) {
			if err != nil {
				w.notAcquired(err)
				return
			}
			for key, img := range images {
				*s.images[key] = imageState{image: img}
			}
			w.acquiredMachine(lease, answered)
		})
	})
}

func (w *worker) machineRequest() MachineRequest {
	m, p := &w.s.machine, w.s.plan
	req := MachineRequest{MachineID: m.id, PodUID: w.s.pod.UID, Shape: m.shape, Budget: m.budget, Images: m.files,
		Path: w.s.pod.Annotations[AnnotationPath]}
	if p != nil && p.template != nil {
		req.Template, req.Refs, req.Pool, req.Images = &p.template.Template, p.refs(), poolOf(w.s.pod), nil
	}
	return req
}

func (w *worker) notAcquired(err error) {
	s, m := &w.s, &w.s.machine
	m.step, m.id = machineNone, ""
	w.dirty = true
	if w.start.Err() != nil {
		return
	}
	m.failures++
	m.retryAt = time.Now().Add(retryDelay(m.failures, machineRetryFirst, machineRetryMax))
	m.reason, m.message = eventFailedSandbox, bound(err.Error(), maxEventMessage/2)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		m.reason = refused.Reason
		if refused.Permanent {
			s.refusal = &refusal{Reason: refused.Reason, Message: m.message}
		}
	}
	w.log.Warn("Machine could not be acquired", "reason", m.reason, "err", err)
	w.tellRefused(m.reason, m.message)
	w.env.events.pod(s.pod, true, eventFailedSandbox, "Failed to create pod sandbox: "+m.message)
}

// acquiredMachine takes in the machine that was given at the time answered.
func (w *worker) acquiredMachine(lease Lease, answered time.Time) {
	s, m := &w.s, &w.s.machine
	m.step, m.acquired, m.path = machineHeld, true, lease.Path()
	if s.plan.template != nil {
		for _, i := range lease.Images() {
			m.slots, m.files = append(m.slots, i.Digest), append(m.files, i.DiskPath)
		}
		w.resolveImages()
	}
	m.failures, m.retryAt, m.reason, m.message = 0, time.Time{}, "", ""
	w.dirty = true
	t := lease.Timings()
	for _, n := range lease.Notices() {
		w.env.events.pod(s.pod, n.Warning, n.Reason, n.Message)
	}
	w.env.events.pod(s.pod, false, eventMachineRestored, fmt.Sprintf("Machine %s of shape %s came by %s in %s",
		lease.MachineID(), m.shape, m.path, (t.Restore+t.Agent).Round(time.Millisecond)))
	if m.generation == 1 {
		w.mark.resumed = answered.Add(-t.Resume)
	}
	w.mark.know(m.path)
	if !w.mark.started {
		w.mark.observe(PhaseRestore, t.Restore)
		w.mark.observe(PhaseAgent, t.Agent)
	}
	w.keep(lease)
}

// prepare sets up what the containers share.
func (w *worker) prepare() {
	m := &w.s.machine
	m.preparing = true
	pod, hold := w.s.pod, w.hold
	began := time.Now()
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(w.start, prepareTimeout)
		defer cancel()
		err := w.setUp(ctx, pod, hold)
		w.post(func(s *state) {
			m.preparing = false
			if err == nil {
				m.prepared, m.failures, m.retryAt, m.message = true, 0, time.Time{}, ""
				w.mark.prepared = time.Now()
				if !w.mark.started {
					w.mark.observe(PhaseVolumes, w.mark.prepared.Sub(began))
				}
				w.dirty = true
				return
			}
			if w.start.Err() != nil || hold != w.hold {
				return
			}
			if sysctlFault(pod, err) {
				w.evict(reasonSysctlForbidden, "Pod was rejected: "+bound(err.Error(), maxEventMessage/2), 0)
			}
			m.failures++
			m.retryAt = time.Now().Add(retryDelay(m.failures, prepareRetryFirst, prepareRetryMax))
			m.message = bound(err.Error(), maxEventMessage/2)
			w.log.Warn("Pod could not be set up in its machine", "err", err)
			reason := eventFailedMount
			if taken := (*hostPortError)(nil); errors.As(err, &taken) {
				reason = eventHostPort
			}
			w.env.events.pod(s.pod, true, reason, "Pod could not be set up: "+m.message)
		})
	})
}

func (w *worker) setUp(ctx context.Context, pod *corev1.Pod, hold *machineHold) error {
	// What something else on this host listens on may be free at the next try.
	if err := hold.ports.open(ctx); err != nil {
		return err
	}
	g, err := hold.lease.Guest(ctx)
	if err != nil {
		return fmt.Errorf("reach the machine's agent: %w", err)
	}
	resolv := resolvConf(pod, w.env.dns)
	if resolv.fellBack {
		w.env.events.pod(pod, true, eventMissingDNS, fmt.Sprintf("Pod has DNS policy %q, but this node has no cluster DNS. Falling back to \"Default\" policy.", pod.Spec.DNSPolicy))
	}
	for _, text := range resolv.cut {
		w.env.events.pod(pod, true, eventDNSConfig, text)
	}
	name, err := kernelHostname(pod, w.env.dns)
	if err != nil {
		w.env.events.pod(pod, true, eventFailedSandbox, "Failed to create pod sandbox: "+err.Error())
		return err
	}
	// The pod and its volumes know nothing of each other, and each call waits for an
	// answer from the machine: side by side they take as long as the slowest.
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(setUpCalls)
	group.Go(func() error {
		_, err := g.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{
			Hostname: name, Hosts: hosts(pod, w.env.dns, w.env.machineAddress), ResolvConf: resolv.content,
			ShareProcessNamespace: pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace, Sysctls: sysctlsOf(pod), Resources: podResources(pod),
		}))
		if err != nil {
			return fmt.Errorf("set up the pod: %w", err)
		}
		return nil
	})
	group.Go(func() error { return hold.api.open(ctx) })
	for i := range pod.Spec.Volumes {
		group.Go(func() error { return hold.volumes.put(ctx, g, pod, &pod.Spec.Volumes[i]) })
	}
	return group.Wait()
}

// setUpCalls bounds the calls to a machine at once: a guest has few processors.
const setUpCalls = 8

// startContainer creates and starts the next run of a container. The record says so first.
func (w *worker) startContainer(i int) {
	s := &w.s
	c := s.containers[i]
	resized := false
	if !w.begin(c, func() {
		c.step, c.asked = containerStarting, time.Now()
		resized = c.begins(s.plan.containers[i].spec)
		if c.last != nil {
			c.backoff = c.backoff.next(c.last.FinishedAt, time.Now())
		}
	}) {
		return
	}
	if resized {
		w.resized()
	}
	job := startJob{
		pod: s.pod, plan: s.plan.containers[i], image: s.images[s.plan.containers[i].image].image,
		slot: slotOf(s, i), ref: w.ref(c), hold: w.hold,
	}
	job.memory = s.plan.shape.MemoryBytes
	job.macOS = s.plan.template != nil && s.plan.template.GuestOS == vm.GuestMacOS
	if name := job.plan.target; name != "" && !job.sharesProcesses() {
		job.target = w.target(name)
	}
	job.lower, job.volumeSlots = s.plan.lowerLayers(job.slot), imageVolumeSlots(s)
	if c.last != nil {
		job.previous = c.last.ID
		if c.attempt >= 2 {
			old := w.ref(c)
			old.Attempt, old.ID = c.attempt-2, containerID(s.pod, c.name, c.attempt-2)
			job.forget = &old
		}
	}
	attempt, hold := c.attempt, w.hold
	requested := time.Now()
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(w.start, containerTimeout)
		defer cancel()
		status, err := w.env.startRun(ctx, job)
		answered := time.Now()
		w.post(func(s *state) {
			if c.attempt != attempt || hold != w.hold {
				return
			}
			if err != nil {
				w.notStarted(c, err)
				return
			}
			w.startedAt(c, requested, answered)
			c.failures, c.reason, c.message = 0, "", ""
			if c.step == containerStarting { // else the watch was quicker
				w.observed(c, status)
			}
			w.allStarted()
		})
	})
}

// target is the run of the container whose processes an ephemeral one is to share; empty when it does not run.
func (w *worker) target(name string) string {
	for _, c := range w.s.containers {
		if c.name == name && c.step == containerRunning {
			return c.id(&w.s)
		}
	}
	return ""
}

func slotOf(s *state, i int) int {
	img := s.images[s.plan.containers[i].image].image
	return slices.Index(s.machine.slots, img.Digest)
}

func (w *worker) ref(c *containerState) ContainerRef {
	return ContainerRef{PodUID: w.s.pod.UID, Namespace: w.s.pod.Namespace, Pod: w.s.pod.Name, Container: c.name, Attempt: c.attempt, ID: c.id(&w.s)}
}

// notStarted notes why a container did not start and when to try again.
func (w *worker) notStarted(c *containerState, err error) {
	w.dirty = true
	if c.step != containerStarting {
		return // it runs: the watch says so
	}
	c.step = containerWaiting
	if w.start.Err() != nil {
		return
	}
	now := time.Now()
	failure := startFailure(err)
	if failure.exit {
		// The run is over before it began, and counts as one.
		w.log.Info("Container cannot start", "container", c.name, "err", err)
		c.step, c.drained = containerExited, true
		c.exit = &termination{Attempt: c.attempt, ID: c.id(&w.s), ExitCode: 128, Reason: failure.reason,
			Message: bound(failure.message, maxStatusMessage), StartedAt: now, FinishedAt: now}
		w.env.events.container(w.s.pod, c.name, true, eventFailed, "Error: "+bound(failure.message, maxEventMessage/2))
		return
	}
	c.failures++
	c.reason, c.message = failure.reason, bound(failure.message, maxStatusMessage)
	c.notBefore = now.Add(failure.delay(c.failures))
	w.log.Warn("Container could not be started", "container", c.name, "reason", failure.reason, "err", err)
	if failure.reason != "" {
		w.env.events.container(w.s.pod, c.name, true, eventFailed, "Error: "+c.message)
	}
}

// allStarted notes when the last container of a first start is up.
func (w *worker) allStarted() {
	if w.mark.started {
		return
	}
	for i, c := range w.s.containers {
		if !c.everStarted && w.s.plan.containers[i].kind != kindEphemeral {
			return
		}
	}
	w.mark.started = true
	w.mark.observe(PhaseContainerStart, time.Since(w.mark.prepared))
}

// startError is why a run did not start.
type startError struct {
	reason, message string
	// exit: the run counts as one that failed.
	exit bool
	// quick: only the connection failed.
	quick bool
	cause error
}

func (e *startError) Error() string { return e.message }
func (e *startError) Unwrap() error { return e.cause }

func (e *startError) delay(failures int) time.Duration {
	if e.quick {
		return retryDelay(failures, connectionRetry, 5*time.Second)
	}
	return retryDelay(failures, configRetryFirst, configRetryMax)
}

func configError(err error) error {
	return &startError{reason: reasonConfigError, message: err.Error(), cause: err}
}

// startFailure tells what a failed create or start means for the container.
func startFailure(err error) *startError {
	if e := (*startError)(nil); errors.As(err, &e) {
		return e
	}
	message := err.Error()
	if ce := (*connect.Error)(nil); errors.As(err, &ce) {
		message = strings.TrimSpace(ce.Message())
	}
	code := connect.CodeOf(err)
	switch {
	case code == connect.CodeFailedPrecondition:
		return &startError{reason: reasonStartError, message: message, exit: true, cause: err}
	case errors.Is(err, vm.ErrUnavailable), code == connect.CodeUnavailable, code == connect.CodeCanceled, code == connect.CodeDeadlineExceeded:
		return &startError{quick: true, message: message, cause: err}
	default:
		return &startError{reason: reasonCreateError, message: message, cause: err}
	}
}
