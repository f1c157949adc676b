// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What a container may do is what its security context says, and so for what is executed in it.
func TestSecurityContext(t *testing.T) {
	ns := namespace(t)
	profiles := filepath.Join(node.StateDir, "seccomp", "team")
	if err := errors.Join(os.MkdirAll(profiles, 0o755), os.WriteFile(filepath.Join(profiles, "no-mkdir.json"),
		[]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}`), 0o644)); err != nil {
		t.Fatal(err)
	}
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: boxes, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    supplementalGroups: [4000]
    supplementalGroupsPolicy: Strict
    sysctls: [{name: net.ipv4.ip_local_port_range, value: "1111 2222"}, {name: kernel.shm_rmid_forced, value: "1"}]
  containers:
  - name: restricted
    image: `+served.Busybox+`
    command: [sleep, "3600"]
    resources: {requests: {memory: 16Mi}}
    securityContext:
      runAsUser: 1000
      runAsGroup: 3000
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
  - name: privileged
    image: `+served.Busybox+`
    command: [sleep, "3600"]
    securityContext: {privileged: true}
  - name: profile
    image: `+served.Busybox+`
    command: [sleep, "3600"]
    securityContext:
      capabilities: {add: [NET_ADMIN], drop: [NET_RAW]}
      seccompProfile: {type: Localhost, localhostProfile: team/no-mkdir.json}
`)
	waitRunning(t, ns, "boxes")
	for _, tt := range []struct{ container, script, want string }{
		{"restricted", `id -u; id -g; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status | tr '\t' ' '; busybox unshare -U true 2>/dev/null || echo confined; touch /x 2>/dev/null || echo read-only`,
			"1000\n3000\n3000 4000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\nconfined\nread-only\n"},
		{"privileged", `grep -E '^(CapEff|Seccomp):' /proc/self/status | tr '\t' ' '; mkdir /m && mount -t tmpfs x /m && echo mounted; ls /dev/vda; cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/1/oom_score_adj; echo 0 > /proc/sys/kernel/shm_rmid_forced && echo writable`,
			"CapEff: 000001ffffffffff\nSeccomp: 0\nmounted\n/dev/vda\n1111\t2222\n1\n999\nwritable\n"},
		{"profile", `grep -E '^(CapEff|Seccomp):' /proc/1/status | tr '\t' ' '; mkdir /made 2>&1; touch /file && echo file`,
			"CapEff: 00000000a80415fb\nSeccomp: 2\nmkdir: can't create directory '/made': No space left on device\nfile\n"},
	} {
		out := kubectl(t, "exec", "-n", ns, "boxes", "-c", tt.container, "--", "sh", "-c", tt.script)
		if out != tt.want {
			t.Errorf("%s: %q, want %q", tt.container, out, tt.want)
		}
	}
}

// What a container cannot have is said by its field, its file or its parameter, and last words
// are heard whatever the root file system is.
func TestSecurityRefusals(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: stuck, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: root, image: `+served.Busybox+`, command: [sleep, "3600"], securityContext: {runAsNonRoot: true}}
  - {name: lost, image: `+served.Busybox+`, command: [sleep, "3600"], securityContext: {seccompProfile: {type: Localhost, localhostProfile: team/not-there.json}}}
  - name: words
    image: `+served.Busybox+`
    command: [sh, -c, "echo last words > /dev/termination-log; exit 3"]
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 1000}
---
apiVersion: v1
kind: Pod
metadata: {name: parameter, namespace: `+ns+`}
spec:
  securityContext: {sysctls: [{name: kernel.no_such_parameter, value: "1"}]}
  containers: [{name: c, image: `+served.Busybox+`, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: fields, namespace: `+ns+`}
spec:
  hostPID: true
  hostIPC: true
  containers:
  - name: c
    image: `+served.Busybox+`
    securityContext: {appArmorProfile: {type: RuntimeDefault}, seLinuxOptions: {level: "s0:c1"}}
`)
	for _, tt := range []struct{ pod, container, reason, text string }{
		{"stuck", "root", "CreateContainerConfigError", "will run as root"},
		{"stuck", "lost", "CreateContainerError", "team/not-there.json"},
		{"stuck", "words", "Error", "last words\n"},
		{"parameter", "", "SysctlForbidden", "kernel.no_such_parameter"},
		{"fields", "", "UnsupportedField", "spec.hostPID"},
		{"fields", "", "UnsupportedField", "spec.hostIPC"},
		{"fields", "", "UnsupportedField", "spec.containers[0].securityContext.appArmorProfile.type"},
		{"fields", "", "UnsupportedField", "spec.containers[0].securityContext.seLinuxOptions"},
	} {
		waitPod(t, ns, tt.pod, fmt.Sprintf("%s says %s: %s", tt.container, tt.reason, tt.text), func(p *corev1.Pod) bool {
			if tt.container == "" {
				return p.Status.Phase == corev1.PodFailed && p.Status.Reason == tt.reason && strings.Contains(p.Status.Message, tt.text)
			}
			for _, c := range p.Status.ContainerStatuses {
				if c.Name != tt.container {
					continue
				}
				for _, s := range []corev1.ContainerState{c.State, c.LastTerminationState} {
					switch {
					case s.Waiting != nil && s.Waiting.Reason == tt.reason:
						return strings.Contains(s.Waiting.Message, tt.text)
					case s.Terminated != nil && s.Terminated.Reason == tt.reason:
						return s.Terminated.ExitCode == 3 && s.Terminated.Message == tt.text
					}
				}
			}
			return false
		})
	}
}
