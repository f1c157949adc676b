// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// SetupPod implements agentv1connect.ContainerServiceHandler.
func (cs *containers) SetupPod(_ context.Context, req *connect.Request[agentv1.SetupPodRequest]) (*connect.Response[agentv1.SetupPodResponse], error) {
	m := req.Msg
	if err := checkHostname(m.GetHostname()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if n := max(len(m.GetHosts()), len(m.GetResolvConf())); n > maxPodFileBytes {
		return nil, invalid("hosts or resolv_conf has %d bytes, at most %d are allowed", n, maxPodFileBytes)
	}
	sysctls, err := sysctlsOf(m.GetSysctls())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	resources, err := resourcesOf(m.GetResources())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	pod := &Pod{
		Hostname: m.GetHostname(), Hosts: m.GetHosts(), ResolvConf: m.GetResolvConf(), SharePIDs: m.GetShareProcessNamespace(),
		Sysctls: sysctls, Resources: resources,
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.pod != nil && cs.podContainersLocked() > 0 && !samePod(cs.pod, pod) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the pod is set up otherwise and has containers"))
	}
	if cs.pod == nil || !slices.Equal(cs.pod.Sysctls, sysctls) {
		if err := setSysctls(cs.system, sysctls); err != nil {
			return nil, runtimeError("set up the pod", err)
		}
	}
	if err := cs.limitPodLocked(resources); err != nil {
		return nil, runtimeError("limit the pod", err)
	}
	cs.pod = pod
	return connect.NewResponse(&agentv1.SetupPodResponse{}), nil
}

// limitPodLocked gives the containers what they may use together.
func (cs *containers) limitPodLocked(r Resources) error {
	var before Resources
	if cs.pod != nil {
		before = cs.pod.Resources
	}
	if r == before {
		return nil
	}
	limiter, ok := cs.runtime.(PodLimiter)
	if !ok {
		return fmt.Errorf("%w: resources: this machine's system has no limits for a pod", ErrInvalid)
	}
	return limiter.LimitPod(r)
}

func samePod(a, b *Pod) bool {
	return a.Hostname == b.Hostname && a.SharePIDs == b.SharePIDs && bytes.Equal(a.Hosts, b.Hosts) && bytes.Equal(a.ResolvConf, b.ResolvConf) &&
		slices.Equal(a.Sysctls, b.Sysctls) && a.Resources == b.Resources
}

// podContainers is the number of containers that are the pod's.
func (cs *containers) podContainers() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.podContainersLocked()
}

func (cs *containers) podContainersLocked() int {
	n := 0
	for id := range cs.table {
		if !strings.HasPrefix(id, guest.TemplatePrefix) {
			n++
		}
	}
	return n
}
