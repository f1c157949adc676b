// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"maps"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Resources of a running pod are changed in place, within its machine: the shape stays.
// What the API has is wanted, what the node granted is allocated, and what the current run
// of a container has is applied. The plan always has what is allocated.
// https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/

const (
	eventResizeStarted    = "ResizeStarted"
	eventResizeCompleted  = "ResizeCompleted"
	eventResizeInfeasible = "ResizeInfeasible"
	eventResizeError      = "ResizeError"

	resizeTimeout                 = 30 * time.Second
	resizeRetryFirst, resizeRetry = time.Second, 30 * time.Second
)

// resizeState is a container's part in a change of resources.
type resizeState struct {
	// allocated is what the node granted; nil: what the pod was admitted with.
	allocated *corev1.ResourceRequirements
	// applied is what the current run has; nil: what is allocated.
	applied *corev1.ResourceRequirements
	// updating: the machine is being told.
	updating bool
	// message of the last failed try to tell it.
	message  string
	failures int
	retryAt  time.Time
}

// pending: the run has not yet what is allocated.
func (r *resizeState) pending() bool {
	return r.applied != nil && r.allocated != nil && !equality.Semantic.DeepEqual(*r.applied, *r.allocated)
}

// infeasible says why the containers' resources can never be given in a machine of this
// shape; empty when they can. What the pod has already does not count against it. Pure.
func infeasible(want, have Need, shape vm.Shape) string {
	cpu, memory := int64(shape.VCPUs)*1000, shape.MemoryBytes-warmpool.GuestMemoryOverhead
	for _, r := range []struct {
		name             string
		want, have, most int64
	}{
		{"cpu", max(want.MilliCPURequest, want.MilliCPULimit), max(have.MilliCPURequest, have.MilliCPULimit), cpu},
		{"memory", max(want.MemoryRequestBytes, want.MemoryLimitBytes), max(have.MemoryRequestBytes, have.MemoryLimitBytes), memory},
	} {
		if r.want > r.most && r.want > r.have {
			return fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d (the pod's machine of shape %s keeps its size)", r.name, r.want, r.most, shape)
		}
	}
	return ""
}

// resizeWanted compares what a pod wants with what its containers are allocated. changes are by
// container index; refusal says why there are none. It is pure.
func resizeWanted(pod *corev1.Pod, p *plan) (changes map[int]corev1.ResourceRequirements, refusal string) {
	allocated := pod.DeepCopy()
	changes = map[int]corev1.ResourceRequirements{}
	for i := range p.containers {
		spec := p.containers[i].spec
		want := containerNamed(pod, spec.Name)
		have := containerNamed(allocated, spec.Name)
		if want == nil || have == nil {
			continue
		}
		have.Resources = spec.Resources
		if !equality.Semantic.DeepEqual(want.Resources, spec.Resources) {
			changes[i] = *want.Resources.DeepCopy()
		}
	}
	if len(changes) == 0 {
		return nil, ""
	}
	if p.template != nil && p.template.GuestOS == vm.GuestMacOS {
		return nil, "containers in a macOS guest have no resources of their own"
	}
	if text := infeasible(needOf(pod), needOf(allocated), p.shape); text != "" {
		return nil, text
	}
	return changes, ""
}

// restartsForResize: the container's policy wants a restart for what changed. It is pure.
func restartsForResize(c *corev1.Container, from, to *corev1.ResourceRequirements) bool {
	for _, p := range c.ResizePolicy {
		if p.RestartPolicy != corev1.RestartContainer {
			continue
		}
		for _, lists := range [][2]corev1.ResourceList{{from.Limits, to.Limits}, {from.Requests, to.Requests}} {
			a, b := lists[0][p.ResourceName], lists[1][p.ResourceName]
			if a.Cmp(b) != 0 {
				return true
			}
		}
	}
	return false
}

// withResources is a container's specification with other resources.
func withResources(c *corev1.Container, r corev1.ResourceRequirements) *corev1.Container {
	out := *c
	out.Resources = r
	return &out
}

// considerResize looks whether the pod wants other resources than it is allocated, and grants
// them or notes why not. It belongs to the loop.
func (w *worker) considerResize() {
	s := &w.s
	if s.plan == nil || s.stage != stageSyncing || s.deletion != nil {
		return
	}
	changes, refusal := resizeWanted(s.pod, s.plan)
	if refusal != s.resizeRefusal {
		s.resizeRefusal = refusal
		if refusal != "" {
			w.log.Info("Pod cannot be resized", "message", refusal)
			w.env.events.pod(s.pod, true, eventResizeInfeasible, "Pod resize is infeasible: "+refusal)
		}
	}
	if len(changes) == 0 {
		return
	}
	for i, r := range changes {
		spec := s.plan.containers[i].spec
		if c := s.containerNamed(spec.Name); c != nil {
			if c.resize.applied == nil && (c.step == containerRunning || c.step == containerStarting || c.step == containerUnknown) {
				c.resize.applied = spec.Resources.DeepCopy()
			}
			c.resize.allocated = r.DeepCopy()
			c.resize.failures, c.resize.retryAt, c.resize.message = 0, time.Time{}, ""
		}
		s.plan.containers[i].spec = withResources(spec, r)
	}
	s.plan.need = needOf(s.pod)
	w.dirty = true
	w.log.Info("Resizing pod", "containers", len(changes))
	w.env.events.pod(s.pod, false, eventResizeStarted, fmt.Sprintf("Pod resize started: %d containers get other resources", len(changes)))
}

// containerNamed is the state of a container of the pod.
func (s *state) containerNamed(name string) *containerState {
	for _, c := range s.containers {
		if c.name == name {
			return c
		}
	}
	return nil
}

// allocated are the resources that the plan has for a container.
func (s *state) allocated(name string) *corev1.ResourceRequirements {
	if s.plan != nil {
		for i := range s.plan.containers {
			if c := s.plan.containers[i].spec; c.Name == name {
				return &c.Resources
			}
		}
	}
	return nil
}

// allocate puts what the record says is allocated into the plan.
func (s *state) allocate() {
	for i := range s.plan.containers {
		spec := s.plan.containers[i].spec
		if c := s.containerNamed(spec.Name); c != nil && c.resize.allocated != nil {
			s.plan.containers[i].spec = withResources(spec, *c.resize.allocated)
		}
	}
}

// applyResize gives running containers what they are allocated: the machine is told, or the
// container is ended for another run, as its policy has it. It belongs to the loop and is
// called after every change. again: there is more to decide at once.
func (w *worker) applyResize(d *decision, now time.Time) (again bool) {
	s := &w.s
	if s.plan == nil || s.stage != stageSyncing || s.machine.step != machineHeld || s.machine.lost != nil || s.kill != nil {
		return false
	}
	for i := range s.plan.containers {
		spec := s.plan.containers[i].spec
		c := s.containerNamed(spec.Name)
		if c == nil || c.step != containerRunning || c.resize.updating || c.stop != nil || !c.resize.pending() {
			continue
		}
		if restartsForResize(spec, c.resize.applied, c.resize.allocated) {
			w.restartContainer(c, fmt.Sprintf("Container %s resize requires restart", c.name), s.plan.grace)
			again = true
			continue
		}
		if now.Before(c.resize.retryAt) {
			d.wakeAt(c.resize.retryAt)
			continue
		}
		w.updateContainer(c, spec)
	}
	return again
}

// updateContainer tells the machine what a run may use from now on.
func (w *worker) updateContainer(c *containerState, spec *corev1.Container) {
	c.resize.updating = true
	id, attempt, hold := c.id(&w.s), c.attempt, w.hold
	want := c.resize.allocated.DeepCopy()
	req := &agentv1.UpdateContainerRequest{Id: id, Resources: resourcesOf(withResources(spec, *want))}
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(w.start, resizeTimeout)
		defer cancel()
		err := updateRun(ctx, hold, req)
		w.post(func(s *state) {
			c.resize.updating = false
			if c.attempt != attempt || hold != w.hold || w.start.Err() != nil {
				return
			}
			w.dirty = true
			if err == nil {
				c.resize.applied, c.resize.message, c.resize.failures, c.resize.retryAt = want, "", 0, time.Time{}
				w.resized()
				return
			}
			c.resize.failures++
			c.resize.retryAt = time.Now().Add(retryDelay(c.resize.failures, resizeRetryFirst, resizeRetry))
			message := bound(fmt.Sprintf("container %s: %s", c.name, startFailure(err).message), maxEventMessage/2)
			if message != c.resize.message {
				c.resize.message = message
				w.log.Warn("Container could not be resized", "container", c.name, "err", err)
				w.env.events.pod(s.pod, true, eventResizeError, message)
			}
		})
	})
}

func updateRun(ctx context.Context, hold *machineHold, req *agentv1.UpdateContainerRequest) error {
	g, err := hold.lease.Guest(ctx)
	if err != nil {
		return fmt.Errorf("reach the machine's agent: %w", err)
	}
	_, err = g.Containers.UpdateContainer(ctx, connect.NewRequest(req))
	return err
}

// begins notes what the run that is about to be created has, and reports whether it had
// something else to get.
func (c *containerState) begins(spec *corev1.Container) (resized bool) {
	resized = c.resize.pending()
	c.resize.applied = spec.Resources.DeepCopy()
	c.resize.message, c.resize.failures, c.resize.retryAt = "", 0, time.Time{}
	return resized
}

// resized tells the pod's owner when the last container has what it is allocated.
func (w *worker) resized() {
	for _, c := range w.s.containers {
		if c.resize.pending() {
			return
		}
	}
	w.env.events.pod(w.s.pod, false, eventResizeCompleted, "Pod resize completed")
}

// resourceStatus adds to a container's status what it is allocated and what it has.
func resourceStatus(spec *corev1.Container, c *containerState, st *corev1.ContainerStatus) {
	st.AllocatedResources = maps.Clone(spec.Resources.Requests)
	r := &spec.Resources
	if c.step == containerRunning && c.resize.applied != nil {
		r = c.resize.applied
	}
	st.Resources = &corev1.ResourceRequirements{Limits: maps.Clone(r.Limits), Requests: maps.Clone(r.Requests)}
}

// resizeConditions are the pod's conditions while a change of resources is not over.
func resizeConditions(s *state) []corev1.PodCondition {
	var out []corev1.PodCondition
	if s.resizeRefusal != "" {
		out = append(out, corev1.PodCondition{Type: corev1.PodResizePending, Reason: corev1.PodReasonInfeasible, Message: s.resizeRefusal})
	}
	for _, c := range s.containers {
		if !c.resize.pending() {
			continue
		}
		condition := corev1.PodCondition{Type: corev1.PodResizeInProgress}
		if c.resize.message != "" {
			condition.Reason, condition.Message = corev1.PodReasonError, c.resize.message
		}
		if n := len(out); n > 0 && out[n-1].Type == corev1.PodResizeInProgress {
			if condition.Reason != "" {
				out[n-1] = condition
			}
			continue
		}
		out = append(out, condition)
	}
	return out
}
