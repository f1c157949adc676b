// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// startJob is one run of one container to be created and started.
type startJob struct {
	pod   *corev1.Pod
	plan  containerPlan
	image *Image
	slot  int
	// volumeSlots are the slots of image volumes by their names.
	volumeSlots map[string]int
	lower       []string // layers between the container's own and its image
	ref         ContainerRef
	hold        *machineHold
	// macOS: the machine's guest is one.
	macOS bool
	// memory of the machine.
	memory int64
	// profile is the content of a seccomp profile of type Localhost.
	profile []byte
	// target is the run whose processes the container of the plan's target shares.
	target string
	// previous is the id of the run before, to be removed from the machine.
	previous string
	// forget is the run whose log files are to go.
	forget *ContainerRef
}

// startRun creates and starts a run. It may be repeated: a run that was created
// before is started, one that was started is left as it is.
func (e *environment) startRun(ctx context.Context, j startJob) (*agentv1.ContainerStatus, error) {
	if j.slot < 0 {
		return nil, configError(errors.New("the image has changed since the machine was made; delete the pod to get the new one"))
	}
	if j.plan.target != "" && j.target == "" && !j.sharesProcesses() {
		return nil, configError(fmt.Errorf("target container %q does not run", j.plan.target))
	}
	vars, err := e.variables.environment(ctx, j.pod, j.plan.spec, j.image.Config.Env)
	if err != nil {
		return nil, configError(err)
	}
	if !vars.has("PATH") {
		vars.set("PATH", defaultPath)
	}
	if !vars.has("HOSTNAME") {
		name, err := kernelHostname(j.pod, e.dns)
		if err != nil {
			return nil, configError(err)
		}
		vars.set("HOSTNAME", name)
	}
	if j.profile, err = localhostProfile(e.seccompDir, j.pod, j.plan.spec); err != nil {
		return nil, err
	}
	req, err := createRequest(j, vars)
	if err != nil {
		return nil, err
	}
	g, err := j.hold.lease.Guest(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the machine's agent: %w", err)
	}
	if j.previous != "" {
		if _, err := g.Containers.RemoveContainer(ctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: j.previous})); err != nil {
			return nil, fmt.Errorf("remove the former run: %w", err)
		}
	}
	if j.forget != nil {
		if err := e.logs.RemoveAttempt(*j.forget); err != nil {
			e.log.Warn("Cannot remove the log of a former run", "container", j.forget.ID, "err", err)
		}
	}
	_, err = g.Containers.CreateContainer(ctx, connect.NewRequest(req))
	switch {
	case err == nil:
		e.events.container(j.pod, j.ref.Container, false, eventCreated, "Container created")
	case connect.CodeOf(err) != connect.CodeAlreadyExists:
		return nil, fmt.Errorf("create container: %w", err)
	}
	res, err := g.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: req.GetId()}))
	if err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	st := res.Msg.GetStatus()
	if st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED && st.GetReason() == reasonStartError {
		e.events.container(j.pod, j.ref.Container, true, eventFailed, "Error: "+bound(st.GetMessage(), maxEventMessage/2))
	} else {
		e.events.container(j.pod, j.ref.Container, false, eventStarted, "Container started")
	}
	return st, nil
}

// sharesProcesses: all containers of the pod see each other's processes anyway.
func (j *startJob) sharesProcesses() bool {
	share := j.pod.Spec.ShareProcessNamespace
	return share != nil && *share
}

// defaultPath is what containerd and docker give a container whose image sets no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// createRequest merges pod and image into what the agent is asked to run. It is pure.
func createRequest(j startJob, vars *variables) (*agentv1.CreateContainerRequest, error) {
	c, img := j.plan.spec, j.image.Config
	args, err := commandLine(c, img, vars.known)
	if err != nil {
		return nil, err
	}
	user, err := userOf(j.pod, c, img.User)
	if err != nil {
		return nil, err
	}
	req := &agentv1.CreateContainerRequest{
		Id: j.ref.ID, ImageSlot: int32(j.slot), Args: args, Env: vars.list(), //nolint:gosec // slots are few
		WorkingDir: img.WorkingDir, User: user, Tty: c.TTY, Stdin: c.Stdin, Resources: resourcesOf(c), LowerLayers: j.lower,
		TerminationMessagePath: messagePath(j), TargetContainer: j.target,
	}
	if c.WorkingDir != "" {
		req.WorkingDir = c.WorkingDir
	}
	if sc := c.SecurityContext; sc != nil && sc.ReadOnlyRootFilesystem != nil {
		req.ReadOnlyRoot = *sc.ReadOnlyRootFilesystem
	}
	if !j.macOS { // where the rest is refused, see unsupportedMacOS
		req.Security = securityOf(j.pod, c)
		if s := req.Security.GetSeccomp(); s != nil {
			s.Profile = j.profile
		}
	}
	req.Resources.OomScoreAdj = oomScoreAdj(j.pod, c, j.plan.kind, j.memory)
	if req.Mounts, err = mountsOf(j.pod, c, vars.known, j.volumeSlots); err != nil {
		return nil, configError(err)
	}
	return req, nil
}

// commandLine merges as the API documents it: the pod's command replaces the image's
// entrypoint and its cmd, the pod's args replace its cmd.
func commandLine(c *corev1.Container, img ImageConfig, known map[string]string) ([]string, error) {
	var args []string
	switch {
	case len(c.Command) > 0:
		args = append(append(args, c.Command...), c.Args...)
	case len(c.Args) > 0:
		args = append(append(args, img.Entrypoint...), c.Args...)
	default:
		return nonEmpty(append(append(args, img.Entrypoint...), img.Cmd...))
	}
	out := make([]string, 0, len(args))
	image := len(img.Entrypoint)
	for i, a := range args {
		if len(c.Command) == 0 && i < image { // the image's words are not expanded
			out = append(out, a)
		} else {
			out = append(out, expand(a, known))
		}
	}
	return nonEmpty(out)
}

func nonEmpty(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, &startError{reason: reasonCreateError, message: "no command specified: neither the image nor the pod says what to run"}
	}
	return args, nil
}

// userOf merges pod, container and image. With runAsNonRoot it refuses what is, or
// may be, root, in the kubelet's words.
func userOf(pod *corev1.Pod, c *corev1.Container, image string) (*agentv1.User, error) {
	u := &agentv1.User{ImageUser: image, Uid: runAsUser(pod, c)}
	nonRoot := false
	if sc := pod.Spec.SecurityContext; sc != nil {
		u.Gid = sc.RunAsGroup
		u.SupplementalGroups = append(u.SupplementalGroups, sc.SupplementalGroups...)
		if sc.FSGroup != nil {
			u.SupplementalGroups = append(u.SupplementalGroups, *sc.FSGroup)
		}
		nonRoot = sc.RunAsNonRoot != nil && *sc.RunAsNonRoot
		u.StrictGroups = sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsGroup != nil {
			u.Gid = sc.RunAsGroup
		}
		if sc.RunAsNonRoot != nil {
			nonRoot = *sc.RunAsNonRoot
		}
	}
	if !nonRoot {
		return u, nil
	}
	u.RequireNonRoot = true
	if u.Uid != nil {
		if *u.Uid == 0 {
			return nil, configError(fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod.Name, c.Name))
		}
		return u, nil
	}
	name, _, _ := strings.Cut(image, ":")
	id, err := strconv.ParseInt(name, 10, 64)
	switch {
	case name == "" || err == nil && id == 0:
		return nil, configError(fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod.Name, c.Name))
	case err != nil:
		return nil, configError(fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", bound(name, 64), pod.Name, c.Name))
	}
	return u, nil
}

// cpuPeriods of quota are per 100 ms, the kernel's default period.
const microsPerMilliCPU = 100

// resourcesOf gives cgroup v2 values from requests and limits.
func resourcesOf(c *corev1.Container) *agentv1.Resources {
	r := &agentv1.Resources{
		MemoryMaxBytes: c.Resources.Limits.Memory().Value(),
		CpuQuotaUs:     c.Resources.Limits.Cpu().MilliValue() * microsPerMilliCPU,
	}
	if r.CpuQuotaUs > 0 {
		r.CpuQuotaUs = max(r.CpuQuotaUs, 1000) // the kernel's least quota is 1 ms
	}
	request := c.Resources.Requests.Cpu().MilliValue()
	if request == 0 {
		request = c.Resources.Limits.Cpu().MilliValue()
	}
	if request > 0 {
		r.CpuWeight = cpuWeight(request)
	}
	return r
}

// podResources is what the containers of a pod may use together, nil for what there is. The
// machine is the pod's alone: a request buys it nothing.
func podResources(pod *corev1.Pod) *agentv1.Resources {
	r := pod.Spec.Resources
	if r == nil || len(r.Limits) == 0 {
		return nil
	}
	all := resourcesOf(&corev1.Container{Resources: corev1.ResourceRequirements{Limits: r.Limits}})
	all.CpuWeight = 0
	return all
}

// cpuWeight turns milliCPU into cgroup v2's weight by way of v1's shares, as
// https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/2254-cgroup-v2 has it.
func cpuWeight(milliCPU int64) int64 {
	shares := min(max(milliCPU*1024/1000, 2), 262144)
	return 1 + (shares-2)*9999/262142
}
