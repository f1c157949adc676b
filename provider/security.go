// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// securityOf is what a container may do in its machine. A Localhost profile is named by
// localhostProfile and read elsewhere. The kubelet's rules: nothing of the pod's but the
// seccomp profile is the container's as well, and a privileged container has no filter. It is pure.
func securityOf(pod *corev1.Pod, c *corev1.Container) *agentv1.Security {
	out := &agentv1.Security{}
	if p := seccompProfile(pod, c); p != nil {
		switch p.Type {
		case corev1.SeccompProfileTypeRuntimeDefault:
			out.Seccomp = &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT}
		case corev1.SeccompProfileTypeLocalhost:
			out.Seccomp = &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST}
		case corev1.SeccompProfileTypeUnconfined:
		}
	}
	if sc := c.SecurityContext; sc != nil {
		out.Privileged = sc.Privileged != nil && *sc.Privileged
		out.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		out.UnmaskedProc = sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount
		if sc.Capabilities != nil {
			out.AddCapabilities, out.DropCapabilities = capabilityNames(sc.Capabilities.Add), capabilityNames(sc.Capabilities.Drop)
		}
	}
	return out
}

// seccompProfile is the container's, else the pod's; nil for none. Nobody's is the node's:
// as a kubelet does without seccompDefault, the node confines no container that asks for nothing.
func seccompProfile(pod *corev1.Pod, c *corev1.Container) *corev1.SeccompProfile {
	sc := c.SecurityContext
	switch {
	case sc != nil && sc.Privileged != nil && *sc.Privileged:
		return nil
	case sc != nil && sc.SeccompProfile != nil:
		return sc.SeccompProfile
	case pod.Spec.SecurityContext != nil:
		return pod.Spec.SecurityContext.SeccompProfile
	}
	return nil
}

func capabilityNames(in []corev1.Capability) []string {
	var out []string
	for _, c := range in {
		out = append(out, string(c))
	}
	return out
}

// terminationMessagePath is the file that a container's last words are read from; empty for none.
// A macOS guest's containers share the system's disk, and have no such file: see unsupportedMacOS.
func terminationMessagePath(c *corev1.Container, macOS bool) string {
	switch {
	case macOS:
		return ""
	case c.TerminationMessagePath == "": // of a pod that the API server did not complete
		return corev1.TerminationMessagePathDefault
	}
	return c.TerminationMessagePath
}

// maxSeccompProfile is the protocol's bound.
const maxSeccompProfile = 1 << 20

// localhostProfile reads the file of a Localhost profile below dir, the node's seccomp
// directory; nil when the container has no such profile.
func localhostProfile(dir string, pod *corev1.Pod, c *corev1.Container) ([]byte, error) {
	p := seccompProfile(pod, c)
	if p == nil || p.Type != corev1.SeccompProfileTypeLocalhost || p.LocalhostProfile == nil {
		return nil, nil
	}
	data, err := readBelow(dir, *p.LocalhostProfile)
	if err != nil {
		// Said to the pod's owner, who does not know the node's directories.
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, &startError{reason: reasonCreateError, cause: err, message: fmt.Sprintf(
			"cannot read seccomp profile %q of the node's seccomp directory: %v", bound(*p.LocalhostProfile, 256), err)}
	}
	return data, nil
}

// readBelow reads a regular file that no link leads out of dir.
func readBelow(dir, name string) ([]byte, error) {
	if !filepath.IsLocal(name) {
		return nil, errors.New("the path leads out of it")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	st, err := root.Stat(name) // before it is opened: a pipe would block
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	if err == nil && len(data) > maxSeccompProfile {
		err = fmt.Errorf("it has more than %d bytes", maxSeccompProfile)
	}
	return data, err
}

// The kubelet's scores (https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior).
const (
	guaranteedOOMScoreAdj = -997
	bestEffortOOMScoreAdj = 1000
	// criticalPriority is where the API's classes system-cluster-critical and
	// system-node-critical begin.
	criticalPriority = 2_000_000_000
	nodeCritical     = criticalPriority + 1000
)

// oomScoreAdj says whom the kernel kills first when a machine has no memory left. The
// kubelet's formula, with the machine's memory where the kubelet has the node's: those that
// compete are the pod's own containers. It is pure.
func oomScoreAdj(pod *corev1.Pod, c *corev1.Container, kind containerKind, memory int64) int32 {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= nodeCritical {
		return guaranteedOOMScoreAdj
	}
	switch pod.Status.QOSClass {
	case corev1.PodQOSGuaranteed:
		return guaranteedOOMScoreAdj
	case corev1.PodQOSBestEffort:
		return bestEffortOOMScoreAdj
	case corev1.PodQOSBurstable:
	default: // the API server says it of every pod
		return 0
	}
	if memory <= 0 {
		return bestEffortOOMScoreAdj - 1
	}
	request := memoryShare(pod, c)
	if kind == kindSidecar {
		// What a container needs is not killed before the container is.
		request = max(request, leastMemory(pod))
	}
	score := bestEffortOOMScoreAdj - min(request, memory)*1000/memory
	// Above every guaranteed container that uses all it has, below every one of best effort.
	return int32(min(max(score, 1000+guaranteedOOMScoreAdj), bestEffortOOMScoreAdj-1))
}

// leastMemory is the least that a main container asks for.
func leastMemory(pod *corev1.Pod) int64 {
	least := int64(-1)
	for i := range pod.Spec.Containers {
		if n := memoryShare(pod, &pod.Spec.Containers[i]); least < 0 || n < least {
			least = n
		}
	}
	return max(least, 0)
}

// memoryShare is what a container asks for, with its share of what the pod asks for beyond
// its containers.
func memoryShare(pod *corev1.Pod, c *corev1.Container) int64 {
	own := c.Resources.Requests.Memory().Value()
	if pod.Spec.Resources == nil {
		return own
	}
	rest, n := pod.Spec.Resources.Requests.Memory().Value(), int64(0)
	for each := range containersOf(pod) {
		if each.kind == kindMain || each.kind == kindSidecar {
			rest -= each.Resources.Requests.Memory().Value()
			n++
		}
	}
	if n == 0 || rest <= 0 {
		return own
	}
	return own + rest/n
}

// sysctlsOf are the pod's kernel parameters, in the notation of the agent: dots separate, and
// a slash stands for a dot within a name. The API takes the other notation too, which is the
// one whose first separator is a slash (sysctl.d(5)). It is pure.
func sysctlsOf(pod *corev1.Pod) []*agentv1.Sysctl {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	var out []*agentv1.Sysctl
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := s.Name
		if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
			name = strings.Map(func(r rune) rune {
				switch r {
				case '.':
					return '/'
				case '/':
					return '.'
				}
				return r
			}, name)
		}
		out = append(out, &agentv1.Sysctl{Name: name, Value: s.Value})
	}
	return out
}

// reasonSysctlForbidden is the kubelet's word for a pod whose kernel parameters it does not set.
const reasonSysctlForbidden = "SysctlForbidden"

// sysctlFault tells whether the machine's kernel does not take what the pod asks of it, which
// no other machine's will.
func sysctlFault(pod *corev1.Pod, err error) bool {
	return connect.CodeOf(err) == connect.CodeInvalidArgument && len(sysctlsOf(pod)) > 0 && strings.Contains(err.Error(), "sysctl")
}
